//! The followers of one tail. Most tails have one or none, so one takes no memory of its own.

use std::{mem, sync::Arc};

use slab::Slab;

use super::Follower;

/// Followers, each with the key with which it is removed.
#[derive(Debug, Default)]
pub enum Followers {
    #[default]
    None,
    /// Its key is [`FIRST`].
    One(Arc<Follower>),
    Many(Box<Slab<Arc<Follower>>>),
}

/// The first key of a slab.
const FIRST: usize = 0;

impl Followers {
    /// Adds a follower, and returns its key.
    pub fn add(&mut self, follower: Arc<Follower>) -> usize {
        if let Self::Many(many) = self {
            return many.insert(follower);
        }
        match mem::take(self) {
            Self::One(first) => {
                let mut many = Slab::from_iter([(FIRST, first)]);
                let key = many.insert(follower);
                *self = Self::Many(Box::new(many));
                key
            }
            _ => {
                *self = Self::One(follower);
                FIRST
            }
        }
    }

    /// Removes the follower with this key.
    pub fn remove(&mut self, key: usize) {
        match self {
            Self::One(_) if key == FIRST => *self = Self::None,
            Self::Many(many) => {
                many.try_remove(key);
                if many.is_empty() {
                    *self = Self::None;
                }
            }
            Self::None | Self::One(_) => {}
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(many) => many.len(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Follower>> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(one) => (Some(one), None),
            Self::Many(many) => (None, Some(many.iter().map(|(_, follower)| follower))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_follower_is_there_until_its_key_is_removed() {
        let mut followers = Followers::default();
        let all: Vec<Arc<Follower>> = (0..4).map(|_| Arc::default()).collect();
        for many in 0..=all.len() {
            // The first to come is the first to go, and the last.
            for is_backwards in [false, true] {
                let mut keys: Vec<_> =
                    all[..many].iter().map(|follower| followers.add(follower.clone())).collect();
                let mut expected = all[..many].to_vec();
                while let Some(next) =
                    if is_backwards { expected.len().checked_sub(1) } else { expected.first().map(|_| 0) }
                {
                    let is_there = |known: &Arc<Follower>| followers.iter().any(|it| Arc::ptr_eq(it, known));
                    assert!(expected.iter().all(is_there));
                    assert_eq!((followers.len(), followers.iter().count()), (expected.len(), expected.len()));
                    expected.remove(next);
                    followers.remove(keys.remove(next));
                }
                assert!(matches!(followers, Followers::None));
                followers.remove(FIRST);
            }
        }
    }
}
