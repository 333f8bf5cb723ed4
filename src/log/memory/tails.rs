//! The tails of topics by name. A tail has its name, so an entry is only a pointer.

use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::log::Tail;

#[derive(Debug, Default)]
pub struct Tails(HashSet<ByName>);

#[derive(Debug)]
struct ByName(Arc<Tail>);

impl Tails {
    pub fn get(&self, name: &str) -> Option<&Arc<Tail>> {
        self.0.get(name).map(|ByName(tail)| tail)
    }

    /// Adds a tail. There must be none of its name.
    pub fn insert(&mut self, tail: Arc<Tail>) {
        self.0.insert(ByName(tail));
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Returns the memory of many tails that are gone.
    pub fn shrink(&mut self) {
        if self.0.capacity() > 4096 && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to(self.0.len() * 2);
        }
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Tail>> {
        self.0.iter().map(|ByName(tail)| tail)
    }
}

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        self.0.name().as_str()
    }
}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<str>::borrow(self).hash(state);
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for ByName {}
