//! The end of a world: what each client must have got, once everything that was woken has run.

use std::sync::atomic::Ordering;

use super::{
    World,
    reader::Reader,
    wire::{Came, ids, parse, plain},
};
use crate::{
    config::Parking,
    http::{batch::Form, group::Parked, gzip::Sum},
    message::Id,
};

impl World<'_> {
    /// Lets everything that was woken run, until nothing is.
    pub fn settle(&mut self) {
        self.store.settle();
        (0..self.readers.len()).for_each(|index| self.set_room(index, None));
        for round in 0.. {
            assert!(round < 10_000, "tasks wake each other for ever");
            let mut has_moved = self.store.step();
            self.read_pages();
            for index in 0..self.readers.len() {
                let reader = &self.readers[index];
                has_moved |= reader.is_open && reader.task.0.load(Ordering::Relaxed);
                self.run_reader(index);
            }
            for index in 0..self.tasks.len() {
                has_moved |= self.run_group(index);
            }
            if !has_moved {
                break;
            }
        }
        let mut alone = self.readers.iter().filter(|reader| reader.is_open && reader.parked.is_none());
        let is_parking = self.parking == Parking::Always;
        assert!(!is_parking || alone.all(|reader| reader.is_apart), "a reader is not woken to park");
    }

    /// Once nothing is lost any more, every reader that may park at all is in a group soon.
    pub fn come_together(&mut self) {
        for topic in ["a", "b"] {
            let id = self.store.publish(topic, None);
            self.published.push((id, topic, None));
        }
        self.settle();
        let mut alone = self.readers.iter().filter(|reader| reader.is_open && reader.parked.is_none());
        assert!(self.parking != Parking::Always || alone.next().is_none(), "a reader stays alone");
    }

    pub fn judge(&self) {
        for reader in &self.readers {
            self.judge_reader(reader);
        }
        if let Form::Gzip(_) = self.form {
            self.readers.iter().filter(|reader| reader.is_open).for_each(|reader| self.judge_sum(reader));
        }
    }

    /// The sum that a reader knows is that of the bytes that its client has, however many of them a group has written.
    fn judge_sum(&self, reader: &Reader) {
        let left = reader.parked.as_ref().and_then(Parked::leave);
        let sum = left.map_or(reader.plain, |left| reader.plain.then(left.given.plain));
        let came = plain(&reader.near.lock().expect("one thread").taken, true, self.form);
        assert_eq!(sum, Sum::of(&came), "{}: the sum of what came", reader.name);
    }

    fn judge_reader(&self, reader: &Reader) {
        let came = parse(&reader.near.lock().expect("one thread").taken, reader.is_open, self.form);
        let name = &reader.name;
        let ids = ids(&came);
        assert!(ids.is_sorted_by(|one, two| one < two), "{name}: once and in order: {came:?}");
        let upto = if reader.is_open { Id::MAX } else { ids.last().copied().unwrap_or(Id::ZERO) };
        for (id, topic, exclude) in &self.published {
            let is_excluded = exclude.as_ref() == Some(name);
            assert!(!(is_excluded && ids.contains(id)), "{name} is excluded from {id}");
            let is_owed = *id > reader.from && *id <= upto && reader.topics.contains(topic) && !is_excluded;
            if is_owed && !ids.contains(id) {
                let lost = self.store.is_retained(*id);
                assert!(
                    !lost,
                    "{name} from {:?} lacks {id} of {topic}, which is retained: {came:?}",
                    reader.from
                );
                assert!(
                    self.is_told(&came, *id, topic),
                    "{name} was not told that {id} of {topic} is gone: {came:?}"
                );
            }
        }
        for began in reader.generations.iter().filter(|began| **began < upto) {
            for topic in reader.topics {
                assert!(
                    self.is_told(&came, *began, topic),
                    "{name}: the generation from {began} on: {topic} {came:?}"
                );
            }
        }
        let ephemerals = came.iter().filter_map(|came| match came {
            Came::Ephemeral(text) => Some(text.clone()),
            _ => None,
        });
        let ephemerals: Vec<_> = ephemerals.collect();
        let mut owed = reader.ephemerals.iter().filter(|_| reader.is_open && reader.topics.contains(&"a"));
        let number = |text: &String| text[1..].parse::<usize>().expect("a number");
        assert!(ephemerals.iter().is_sorted_by(|one, two| number(one) < number(two)), "{name}: {came:?}");
        assert!(
            owed.all(|text| ephemerals.contains(text)),
            "{name} lacks one of {:?}: {came:?}",
            reader.ephemerals
        );
    }

    /// True if a gap of the topic came after all older messages of it, and before all newer ones.
    fn is_told(&self, came: &[Came], id: Id, topic: &str) -> bool {
        let topic_of =
            |id: &Id| self.published.iter().find(|(other, ..)| other == id).map(|(_, topic, _)| *topic);
        let mut is_told = false;
        for came in came {
            match came {
                Came::Message(other) if topic_of(other) == Some(topic) && *other < id => is_told = false,
                Came::Message(other) if topic_of(other) == Some(topic) && *other > id => return is_told,
                Came::Gap(of) if of == topic => is_told = true,
                _ => {}
            }
        }
        is_told
    }
}
