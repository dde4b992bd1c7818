//! A pass of few rows on all threads: the next token of every text that is being written.
//!
//! Decision: prompts come by the hundred and each thread takes passes of its own; the tokens of a
//! text come one after the other, so there the threads share each product, by runs of outputs, and
//! the attention, by texts. An output is the same chain of sums wherever it is computed, so that
//! changes no bit.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::attention::{self, Heads, Scratch, Sight};
use super::batch::{Prefix, Sequence};
use super::kernel::PANEL;
use super::keys_values::KeyValues;
use super::matmul::{Matrix, Tiles};

/// Which threads work on a pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The one that asked, while others take other passes.
    One,
    /// All of the current pool, on a pass of one token per sequence that everything waits for.
    All,
}

/// Runs `work` on one thread of the current pool while the others stay awake for its parts.
///
/// A step of a text is some hundred short products, each shared by all threads. A thread that falls
/// asleep between two of them, and one outside of the pool that does so at each, costs more than the
/// products do.
///
/// Several may run at once: who leads one is never kept awake for another, since its own work would
/// stand still until that is over.
pub(crate) fn team<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let over = AtomicBool::new(false);
    let over = &over;
    rayon::scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(move |_| {
                // A lead may find this while it waits for a part of its own, and must not stay here.
                while !LEADS.get() && !over.load(Ordering::Relaxed) {
                    if rayon::yield_now() != Some(rayon::Yield::Executed) {
                        std::thread::yield_now();
                    }
                }
            });
        }
        let _lead = Lead { over, before: LEADS.replace(true) };
        work()
    })
}

thread_local! {
    /// Whether the thread leads a team, now or further down its stack.
    static LEADS: Cell<bool> = const { Cell::new(false) };
}

/// Lets the others go when the work ends, however it ends.
struct Lead<'a> {
    over: &'a AtomicBool,
    before: bool,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        LEADS.set(self.before);
    }
}

/// Attention of a pass of one token per sequence, each on a thread of its own: the keys and values
/// of every token, in order.
pub(crate) fn attend(
    heads: Heads,
    layer: usize,
    sequences: &[Sequence],
    projected: &[f32],
    mixed: &mut [f32],
) -> Vec<KeyValues> {
    let rows =
        projected.par_chunks_exact(heads.row_width()).zip(mixed.par_chunks_exact_mut(heads.query_width()));
    let one = |((row, mixed), sequence): ((&[f32], &mut [f32]), &Sequence)| {
        assert!(sequence.rows() == 1 && sequence.tree.is_empty(), "a step is one token per sequence");
        let mut own = KeyValues::default();
        own.pack(heads, row, 0, 1);
        let mut path = sequence.prefix.map_or(Vec::new(), |prefix| prefix.path(layer));
        path.push(&own);
        let prompt = sequence.prefix.map_or(0, Prefix::end) + 1;
        let sight = Sight { prompt, ancestors: Vec::new() };
        attention::attend(heads, row, 0, &[sight], &path, &mut Scratch::default(), mixed);
        own
    };
    rows.zip(sequences).map(one).collect()
}

/// Panels of a part of a product, at least, and parts for each thread, at most: several, because
/// threads are not equally fast for as long as a part takes.
const LEAST: usize = 4;
const PARTS: usize = 4;

impl Matrix {
    /// [`Matrix::apply`] by all threads of the current pool, each run of panels by one.
    pub(crate) fn apply_spread(&self, x: &Tiles, y: &mut [f32], add: bool) {
        let n = self.outputs();
        let rows = y.len() / n;
        let each = n.div_ceil(PANEL).div_ceil(rayon::current_num_threads() * PARTS).max(LEAST) * PANEL;
        // By part, its stretch of every row.
        let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
        parts.resize_with(n.div_ceil(each), || Vec::with_capacity(rows));
        for row in y.chunks_exact_mut(n) {
            parts.iter_mut().zip(row.chunks_mut(each)).for_each(|(part, stretch)| part.push(stretch));
        }
        parts.par_iter_mut().enumerate().for_each(|(i, part)| {
            let from = i * each;
            self.product(x, 0..rows, (from, (from + each).min(n)), &mut Vec::new(), |first, c| {
                for (y, c) in part.iter_mut().zip(c.chunks_exact(PANEL)) {
                    let y = y[first - from..].iter_mut().zip(c);
                    if add { y.for_each(|(y, c)| *y += c) } else { y.for_each(|(y, c)| *y = *c) }
                }
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::testing::noise;
    use crate::lm::weights::Rows;

    #[test]
    fn the_bits_are_those_of_one_thread() {
        let (rows, inputs, outputs) = (5, 300, 150);
        let (x, w, start) =
            (noise(13, rows * inputs), noise(14, outputs * inputs), noise(15, rows * outputs));
        let matrix = Matrix::pack(vec![Rows::F32(w)], inputs);
        let mut tiles = Tiles::default();
        tiles.pack(rows, inputs, |r| &x[r * inputs..]);
        for add in [false, true] {
            let mut expected = start.clone();
            matrix.apply(&tiles, &mut Vec::new(), &mut expected, add);
            for threads in [1, 2, 3, 7] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut y = start.clone();
                pool.install(|| matrix.apply_spread(&tiles, &mut y, add));
                assert_eq!(y, expected, "{threads} threads");
            }
        }
    }

    #[test]
    fn teams_at_once_do_not_wait_for_each_other() {
        let (done, heard) = std::sync::mpsc::channel();
        for threads in [1, 2, 3, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let pool = std::sync::Arc::new(pool);
            for _ in 0..2 {
                let (pool, done) = (pool.clone(), done.clone());
                let part = |seed: u64| (0..400u64).fold(seed, |a, b| std::hint::black_box(a ^ b));
                let products =
                    move || (0..20).map(|_| (0..64).into_par_iter().map(part).sum::<u64>()).sum::<u64>();
                std::thread::spawn(move || {
                    (0..200).for_each(|_| _ = std::hint::black_box(pool.install(|| team(products))));
                    done.send(()).unwrap();
                });
            }
        }
        for _ in 0..8 {
            let heard = heard.recv_timeout(std::time::Duration::from_secs(100));
            assert!(heard.is_ok(), "a team never ended");
        }
    }
}
