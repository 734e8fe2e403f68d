//! What other threads allocate is counted. Alone in its program: any thread of it counts.

use std::hint::black_box;

use lockstep_counting::{exempt_this_thread, first_of_others, others, watch_others};

#[test]
fn others_are_counted_with_a_place_and_exempt_threads_are_not() {
    exempt_this_thread();
    let turn = std::sync::Barrier::new(2);
    let other = || {
        turn.wait();
        turn.wait();
        drop(black_box(vec![1_u8; 100]));
        turn.wait();
        turn.wait();
    };
    let count = std::thread::scope(|scope| {
        scope.spawn(other);
        turn.wait();
        watch_others();
        turn.wait();
        drop(black_box(vec![1_u8; 100]));
        turn.wait();
        let count = others();
        turn.wait();
        count
    });
    assert_eq!(count, 1);
    assert!(first_of_others().is_some_and(|place| !place.is_empty()));
}
