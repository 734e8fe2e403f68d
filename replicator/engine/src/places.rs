//! Places for clients, of which the whole engine has so many: whichever shard a client is on, it takes one.
//!
//! A place is free again when its holder is dropped. Taken when a client comes or changes its state, never per request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many places.
#[derive(Clone, Debug)]
pub(crate) struct Places(Arc<Count>);

#[derive(Debug)]
struct Count {
    taken: AtomicUsize,
    max: usize,
}

/// One that is taken.
#[derive(Debug)]
pub(crate) struct Place(Arc<Count>);

impl Places {
    /// All of them free.
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Count { taken: AtomicUsize::new(0), max }))
    }

    /// Takes one; `None` if there is none.
    pub(crate) fn take(&self) -> Option<Place> {
        let one_more = |taken| (taken < self.0.max).then_some(taken + 1);
        // Nothing else is published with the count: whoever takes a place reads no other memory for it.
        let took = self.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        took.is_ok().then(|| Place(Arc::clone(&self.0)))
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_holder_goes() {
        let places = Places::new(2);
        let (first, second) = (places.take().unwrap(), places.take().unwrap());
        assert!(places.take().is_none());
        drop(first);
        assert_eq!(places.taken(), 1);
        let third = places.take().unwrap();
        assert!(places.clone().take().is_none(), "a copy counts the same places");
        drop((second, third));
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn threads_never_take_more_than_there_are() {
        let places = Places::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let _place = places.take();
                        assert!(places.taken() <= 3);
                    }
                });
            }
        });
        assert_eq!(places.taken(), 0);
    }
}
