//! A frozen matrix with its adapter: `y = W x + s · B A x̃`, where `x̃` is `x` with some entries left out.
//!
//! Decision: nothing is ever computed towards the gradient of `W`. What the gradients of `A` and `B`
//! need of a stretch of rows is four narrow tables ([`Trace`]); when all rows have left theirs, each
//! number of a gradient is one chain over the rows in order, by the kernel of the products.

use std::ops::Range;

use rayon::prelude::*;

use crate::lm::adapters::{Adapter, Module};
use crate::lm::kernel::{PANEL, TILE, accumulate};
use crate::lm::matmul::{Matrix, Tiles};
use crate::nn::random::Stream;

/// Which inputs of adapters are left out in a step, the others being scaled up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    /// The share of them.
    pub(crate) rate: f32,
    /// With the step, what the choice follows from.
    pub(crate) seed: u64,
    /// The step.
    pub(crate) step: u64,
}

impl Dropout {
    /// Multiplies rows from the row `first` on by their masks, for one matrix of one layer.
    fn apply(&self, at: (usize, usize), first: usize, width: usize, rows: &mut [f32]) {
        for (row, values) in (first..).zip(rows.chunks_exact_mut(width)) {
            let position = [self.step, at.0 as u64, at.1 as u64, row as u64];
            let mask = Stream::new(self.seed, "adapter dropout", &position).dropout_mask(width, self.rate);
            values.iter_mut().zip(mask).for_each(|(value, mask)| *value *= mask);
        }
    }
}

/// Buffers reused from product to product.
#[derive(Default)]
pub(super) struct Scratch {
    tiles: Tiles,
    panel: Vec<f32>,
}

/// What a stretch of rows leaves for the gradients of an adapter.
#[derive(Default)]
pub(super) struct Trace {
    /// `x̃ [row][inputs]`.
    x: Vec<f32>,
    /// `[row][outputs]`
    dy: Vec<f32>,
    /// `A x̃ [row][rank]`.
    inner: Vec<f32>,
    /// `s · Bᵀ dy [row][rank]`.
    slope: Vec<f32>,
}

/// A frozen matrix, with its adapter where it has one.
#[derive(Clone, Copy)]
pub(super) struct Linear<'a> {
    pub(super) weights: &'a Matrix,
    pub(super) adapter: Option<&'a Adapter>,
    pub(super) dropout: Option<&'a Dropout>,
    /// Layer and place, which name the masks.
    pub(super) at: (usize, usize),
}

impl Linear<'_> {
    fn dropped(&self, first: usize, mut x: Vec<f32>) -> Vec<f32> {
        if let Some(dropout) = self.dropout {
            dropout.apply(self.at, first, self.weights.inputs, &mut x);
        }
        x
    }

    /// `y = …`, or `y += …`, for the rows from `first` on.
    pub(super) fn forward(&self, first: usize, x: &[f32], y: &mut [f32], add: bool, scratch: &mut Scratch) {
        let Scratch { tiles, panel } = scratch;
        let inputs = self.weights.inputs;
        let rows = x.len() / inputs;
        tiles.pack(rows, inputs, |r| &x[r * inputs..]);
        self.weights.apply(tiles, panel, y, add);
        if let Some(adapter) = self.adapter {
            if self.dropout.is_some() {
                let x = self.dropped(first, x.to_vec());
                tiles.pack(rows, inputs, |r| &x[r * inputs..]);
            }
            let mut inner = vec![0.0; rows * adapter.rank()];
            adapter.down.apply(tiles, panel, &mut inner, false);
            tiles.pack(rows, adapter.rank(), |r| &inner[r * adapter.rank()..]);
            adapter.up.apply(tiles, panel, y, true);
        }
    }

    /// The gradient of the input of the rows from `first` on; what is left for that of the adapter.
    pub(super) fn backward(
        &self,
        first: usize,
        x: Vec<f32>,
        dy: Vec<f32>,
        scratch: &mut Scratch,
    ) -> (Vec<f32>, Trace) {
        let Scratch { tiles, panel } = scratch;
        let (inputs, outputs) = (self.weights.inputs, self.weights.outputs());
        let rows = x.len() / inputs;
        let mut dx = vec![0.0; x.len()];
        tiles.pack(rows, outputs, |r| &dy[r * outputs..]);
        self.weights.apply_transposed(tiles, panel, &mut dx, false);
        let Some(adapter) = self.adapter else { return (dx, Trace::default()) };
        let rank = adapter.rank();
        let (mut inner, mut slope) = (vec![0.0; rows * rank], vec![0.0; rows * rank]);
        adapter.up.apply_transposed(tiles, panel, &mut slope, false);
        let x = self.dropped(first, x);
        tiles.pack(rows, inputs, |r| &x[r * inputs..]);
        adapter.down.apply(tiles, panel, &mut inner, false);
        tiles.pack(rows, rank, |r| &slope[r * rank..]);
        match self.dropout {
            None => adapter.down.apply_transposed(tiles, panel, &mut dx, true),
            Some(dropout) => {
                let mut through = vec![0.0; x.len()];
                adapter.down.apply_transposed(tiles, panel, &mut through, false);
                dropout.apply(self.at, first, inputs, &mut through);
                dx.iter_mut().zip(through).for_each(|(dx, through)| *dx += through);
            }
        }
        (dx, Trace { x, dy, inner, slope })
    }
}

/// A table of the traces of all rows: which, and how wide its rows are.
#[derive(Clone, Copy)]
struct Table<'a> {
    traces: &'a [&'a Trace],
    of: fn(&Trace) -> &[f32],
    width: usize,
}

impl Table<'_> {
    /// Some of its columns, `[row][into_width]`, zero past the last.
    fn columns<const WIDTH: usize>(&self, first: usize, count: usize) -> Vec<f32> {
        let rows = self.traces.iter().flat_map(|trace| (self.of)(trace).chunks_exact(self.width));
        let mut columns = Vec::new();
        for row in rows {
            match row[first..first + count].first_chunk::<WIDTH>() {
                Some(whole) => columns.extend(whole),
                None => columns.extend((0..WIDTH).map(|i| if i < count { row[first + i] } else { 0.0 })),
            }
        }
        columns
    }
}

/// Columns of the wide side that one job takes.
const JOB: usize = 12 * PANEL;

/// A part of the gradient of one module's `A` or `B`: sums over all rows of `left[i] · right[j]` for all
/// `i` and some `j`.
struct Job<'a> {
    module: Module,
    of_a: bool,
    left: Table<'a>,
    left_first: usize,
    right: Table<'a>,
    right_first: usize,
    /// The `j` among the module's own.
    columns: Range<usize>,
}

impl Job<'_> {
    /// `[i][j]`
    fn sums(&self) -> Vec<f32> {
        let (rank, columns) = (self.module.a.rows, self.columns.len());
        let mut sums = vec![0.0; rank * columns];
        for i in (0..rank).step_by(TILE) {
            let rows = TILE.min(rank - i);
            let left = self.left.columns::<TILE>(self.left_first + i, rows);
            for j in (0..columns).step_by(PANEL) {
                let width = PANEL.min(columns - j);
                let right = self.right.columns::<PANEL>(self.right_first + self.columns.start + j, width);
                let mut c = [0.0; TILE * PANEL];
                accumulate(rows, &left, &right, &mut c);
                for (i, c) in (i..i + rows).zip(c.chunks_exact(PANEL)) {
                    sums[i * columns + j..][..width].copy_from_slice(&c[..width]);
                }
            }
        }
        sums
    }

    /// Adds the sums where they belong: `A` is `[i][j]`, `B` is `[j][i]` and has the scale outside.
    fn add(&self, sums: &[f32], scale: f32, gradient: &mut [f32]) {
        let Module { a, b } = self.module;
        for (i, sums) in sums.chunks_exact(self.columns.len()).enumerate() {
            for (j, sum) in self.columns.clone().zip(sums) {
                match self.of_a {
                    true => gradient[a.row(i)][j] += sum,
                    false => gradient[b.row(j)][i] += scale * sum,
                }
            }
        }
    }
}

/// Adds the gradients of the adapters of some modules to `gradient`, from what all rows have left.
pub(super) fn add_gradients(modules: &[Module], scale: f32, traces: &[&Trace], gradient: &mut [f32]) {
    let rank: usize = modules.iter().map(|module| module.a.rows).sum();
    let outputs: usize = modules.iter().map(|module| module.b.rows).sum();
    let inputs = modules.first().map_or(0, |module| module.a.cols);
    let x = Table { traces, of: |trace| &trace.x, width: inputs };
    let dy = Table { traces, of: |trace| &trace.dy, width: outputs };
    let inner = Table { traces, of: |trace| &trace.inner, width: rank };
    let slope = Table { traces, of: |trace| &trace.slope, width: rank };
    let mut jobs: Vec<Job> = Vec::new();
    let (mut left_first, mut right_first) = (0, 0);
    for module in modules {
        let module = *module;
        let stretches = |end: usize| (0..end).step_by(JOB).map(move |first| first..end.min(first + JOB));
        jobs.extend(stretches(inputs).map(|columns| Job {
            module,
            of_a: true,
            left: slope,
            left_first,
            right: x,
            right_first: 0,
            columns,
        }));
        jobs.extend(stretches(module.b.rows).map(|columns| Job {
            module,
            of_a: false,
            left: inner,
            left_first,
            right: dy,
            right_first,
            columns,
        }));
        (left_first, right_first) = (left_first + module.a.rows, right_first + module.b.rows);
    }
    let sums: Vec<Vec<f32>> = jobs.par_iter().map(Job::sums).collect();
    jobs.iter().zip(sums).for_each(|(job, sums)| job.add(&sums, scale, gradient));
}
