//! An allocator that counts: tests link this crate and assert how often, and how much, the code under test
//! allocates.
//!
//! It is the global allocator of every program that links it. Invariants: it never allocates for its own books
//! outside of [`first_of_others`], so that counting changes nothing; what a thread counts for itself is exact.
//! Memory that one thread takes and another gives back is counted at the one that takes it.
//!
//! Two kinds of questions: [`measure`] what a function does on this thread; [`watch_others`] and [`others`] what all
//! threads do that have not called [`exempt_this_thread`], for the threads of a program that runs inside the test.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a function took from the allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Calls that asked for memory, or for more of it.
    pub allocations: u64,
    /// Most bytes held at one moment beyond those held at the begin.
    pub peak_bytes: u64,
}

#[derive(Clone, Copy)]
struct Books {
    allocations: u64,
    live_bytes: i64,
    peak_bytes: i64,
}

thread_local! {
    static BOOKS: Cell<Books> =
        const { Cell::new(Books { allocations: 0, live_bytes: 0, peak_bytes: 0 }) };
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

static WATCHED: AtomicBool = AtomicBool::new(false);
static OTHERS: AtomicU64 = AtomicU64::new(0);
static FIRST: Mutex<Option<String>> = Mutex::new(None);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to `System` unchanged, which keeps the contract of `GlobalAlloc`; the books beside
// it are plain numbers and are never read to compute an address or a size.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size(), 0);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        taken(new_bytes, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, new_bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        given_back(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

fn taken(bytes: usize, before_bytes: usize) {
    // A thread that ends has no books any more.
    let _ = BOOKS.try_with(|cell| {
        let mut books = cell.get();
        books.allocations += 1;
        books.live_bytes += bytes as i64 - before_bytes as i64;
        books.peak_bytes = books.peak_bytes.max(books.live_bytes);
        cell.set(books);
    });
    if WATCHED.load(Ordering::Relaxed) {
        note_other();
    }
}

fn given_back(bytes: usize) {
    let _ = BOOKS.try_with(|cell| {
        let mut books = cell.get();
        books.live_bytes -= bytes as i64;
        cell.set(books);
    });
}

/// Counts for [`others`]; the first one leaves its backtrace, whose own allocations are not counted.
fn note_other() {
    if EXEMPT.try_with(Cell::get).unwrap_or(true) {
        return;
    }
    if OTHERS.fetch_add(1, Ordering::Relaxed) == 0 {
        let _ = EXEMPT.try_with(|exempt| exempt.set(true));
        let text = Backtrace::force_capture().to_string();
        if let Ok(mut first) = FIRST.lock() {
            *first = Some(text);
        }
        let _ = EXEMPT.try_with(|exempt| exempt.set(false));
    }
}

/// Runs `work` and says what it took on this thread. Within another measurement, that one's peak restarts here.
// Not inlined: `cargo xtask count` finds it by its name.
#[inline(never)]
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Usage) {
    let before = BOOKS.get();
    BOOKS.set(Books { peak_bytes: before.live_bytes, ..before });
    let result = work();
    let after = BOOKS.get();
    let usage = Usage {
        allocations: after.allocations - before.allocations,
        peak_bytes: u64::try_from(after.peak_bytes - before.live_bytes).unwrap_or(0),
    };
    (result, usage)
}

/// What this thread does from now on is none of the others' doing.
pub fn exempt_this_thread() {
    EXEMPT.set(true);
}

/// Begins to count, from zero, what threads that are not exempt allocate.
pub fn watch_others() {
    *FIRST.lock().expect("nobody panics with it") = None;
    OTHERS.store(0, Ordering::SeqCst);
    WATCHED.store(true, Ordering::SeqCst);
}

/// Ends it, and says how many allocations there were.
pub fn others() -> u64 {
    WATCHED.store(false, Ordering::SeqCst);
    OTHERS.load(Ordering::SeqCst)
}

/// Where the first of them came from.
pub fn first_of_others() -> Option<String> {
    FIRST.lock().expect("nobody panics with it").clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_function_takes_is_counted_on_its_thread() {
        let (held, usage) = measure(|| {
            drop(vec![1_u8; 5000]);
            vec![1_u8; 300]
        });
        assert_eq!((usage.allocations, usage.peak_bytes, held.len()), (2, 5000, 300));
        let ((), usage) = measure(|| {
            std::thread::spawn(|| drop(vec![1_u8; 1 << 20])).join().expect("it does not panic");
        });
        assert!(usage.peak_bytes < 1 << 20, "{usage:?}");
        assert_eq!(measure(|| ()).1, Usage::default());
    }
}
