//! What the clients have done so far, and how far they may go: shared by them and by those who watch them.

use tokio::sync::watch;

/// What became of the work so far.
pub trait Tally: Clone + Default + Send + Sync {
    /// How much of it came to an end.
    fn ended(&self) -> u64;
}

/// The state that is shared.
#[derive(Debug)]
pub struct Traffic<T>(watch::Sender<State<T>>);

#[derive(Debug)]
struct State<T> {
    /// So many pieces of work have started.
    started: u64,
    /// So many may start.
    released: u64,
    /// More may be released yet.
    open: bool,
    tally: T,
}

impl<T> State<T> {
    fn may_start(&self) -> bool {
        self.started < self.released
    }
}

/// None has started, and none may.
impl<T: Tally> Default for Traffic<T> {
    fn default() -> Self {
        Self(watch::Sender::new(State {
            started: 0,
            released: 0,
            open: true,
            tally: T::default(),
        }))
    }
}

impl<T: Tally> Traffic<T> {
    /// Lets work start, up to this many pieces in all.
    pub fn release(&self, work: u64) {
        self.0
            .send_modify(|state| state.released = state.released.max(work));
    }

    /// Lets no more start than are released.
    pub fn close(&self) {
        self.0.send_modify(|state| state.open = false);
    }

    /// So many pieces may start in all.
    pub fn released(&self) -> u64 {
        self.0.borrow().released
    }

    /// Pieces between their start and their end.
    pub fn in_flight(&self) -> u64 {
        let state = self.0.borrow();
        state.started - state.tally.ended()
    }

    /// Returns once every piece that may start has started.
    pub async fn exhausted(&self) {
        // It fails only where the sender is gone, and that is ours.
        let _ = self
            .0
            .subscribe()
            .wait_for(|state| !state.may_start())
            .await;
    }

    /// Returns once every piece has ended, and no other will be released.
    pub async fn finished(&self) {
        let finished = |state: &State<T>| {
            !state.open && !state.may_start() && state.started == state.tally.ended()
        };
        let _ = self.0.subscribe().wait_for(finished).await;
    }

    /// What became of the work so far.
    pub fn tally(&self) -> T {
        self.0.borrow().tally.clone()
    }

    /// Writes down what became of a piece.
    pub fn count(&self, change: impl FnOnce(&mut T)) {
        self.0.send_modify(|state| change(&mut state.tally));
    }

    /// The number of the next piece, from 0, once it may start; `None` where there is no other.
    pub async fn start(&self) -> Option<u64> {
        let mut states = self.0.subscribe();
        loop {
            let mut number = None;
            self.0.send_if_modified(|state| {
                if state.may_start() {
                    number = Some(state.started);
                    state.started += 1;
                }
                number.is_some()
            });
            if number.is_some() {
                return number;
            }
            let state = states
                .wait_for(|state| state.may_start() || !state.open)
                .await;
            if !state.ok()?.may_start() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Ended(u64);

    impl Tally for Ended {
        fn ended(&self) -> u64 {
            self.0
        }
    }

    #[tokio::test]
    async fn nothing_starts_before_it_is_released_or_twice() {
        let traffic = Traffic::<Ended>::default();
        traffic.release(2);
        assert_eq!(traffic.start().await, Some(0));
        assert_eq!(traffic.start().await, Some(1));
        traffic.exhausted().await;
        assert_eq!(traffic.in_flight(), 2);
        let (number, ()) = tokio::join!(traffic.start(), async { traffic.release(3) });
        assert_eq!(number, Some(2));
        traffic.count(|tally| tally.0 += 1);
        assert_eq!(traffic.in_flight(), 2);
        traffic.close();
        assert_eq!(traffic.start().await, None);
    }
}
