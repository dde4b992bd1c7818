//! AdamW (Loshchilov & Hutter 2019, algorithm 2) over a flat parameter vector.
//!
//! Its whole state is public and serialisable, so that a fit can be stopped and resumed bit by bit;
//! the optimisers at hand keep theirs private. The update is element-wise, so it may be split over
//! threads freely.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::params::Layout;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.98;
const EPSILON: f32 = 1e-8;
const PIECE: usize = 1 << 14;

/// Steps taken and both moments, in the order of the parameters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdamW {
    /// Steps taken so far.
    pub step: u32,
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

impl AdamW {
    /// The state before the first step.
    pub fn new(layout: &Layout) -> Self {
        AdamW { step: 0, first: vec![0.0; layout.len()], second: vec![0.0; layout.len()] }
    }

    /// Moves `values` one step against `gradient`; `decay` is taken per unit of learning rate, from
    /// the parameters the layout marks.
    pub fn step(&mut self, layout: &Layout, values: &mut [f32], gradient: &[f32], rate: f32, decay: f32) {
        self.step += 1;
        for entry in layout.entries().iter().filter(|entry| entry.decay) {
            values[entry.slot.range()].iter_mut().for_each(|v| *v -= rate * decay * *v);
        }
        // `powi` is repeated multiplication: the same on every machine.
        let unbias1 = 1.0 / (1.0 - BETA1.powi(self.step as i32));
        let unbias2 = 1.0 / (1.0 - BETA2.powi(self.step as i32));
        let both = self.first.par_chunks_mut(PIECE).zip(self.second.par_chunks_mut(PIECE));
        let moved = values.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
        moved.zip(both).for_each(|((values, gradient), (first, second))| {
            for (((v, g), m), s) in values.iter_mut().zip(gradient).zip(first).zip(second) {
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *s = BETA2 * *s + (1.0 - BETA2) * g * g;
                *v -= rate * (*m * unbias1) / ((*s * unbias2).sqrt() + EPSILON);
            }
        });
    }
}

/// Scales `gradient` down to a Euclidean length of at most `limit`.
pub fn clip(gradient: &mut [f32], limit: f32) {
    // Summed in double precision, piece by piece in order: no dependence on threads.
    let squares: f64 = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
    let length = squares.sqrt() as f32;
    if length > limit {
        gradient.iter_mut().for_each(|g| *g *= limit / length);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::params::Init, *};

    fn layout() -> Layout {
        let mut layout = Layout::default();
        layout.add("w", 1, 2, Init::Constant(1.0), true);
        layout.add("b", 1, 1, Init::Constant(1.0), false);
        layout
    }

    #[test]
    fn the_first_step_moves_by_the_rate_and_decays_what_is_marked() {
        let layout = layout();
        let mut values = layout.initial(0);
        AdamW::new(&layout).step(&layout, &mut values, &[2.0, -0.5, 0.1], 0.1, 0.5);
        for (value, expected) in values.iter().zip([0.85, 1.05, 0.9]) {
            assert!((value - expected).abs() < 1e-6, "{values:?}");
        }
    }

    #[test]
    fn a_resumed_fit_continues_bit_by_bit() {
        let layout = layout();
        let gradient = [0.3, -0.2, 0.7];
        let (mut straight, mut state) = (layout.initial(0), AdamW::new(&layout));
        for _ in 0..3 {
            state.step(&layout, &mut straight, &gradient, 0.01, 0.1);
        }
        let saved = postcard::to_allocvec(&state).unwrap();
        let mut resumed: AdamW = postcard::from_bytes(&saved).unwrap();
        let mut copy = straight.clone();
        state.step(&layout, &mut straight, &gradient, 0.01, 0.1);
        resumed.step(&layout, &mut copy, &gradient, 0.01, 0.1);
        assert_eq!(straight, copy);
    }

    #[test]
    fn clipping_only_shortens() {
        let mut long = [3.0, 4.0];
        clip(&mut long, 1.0);
        assert!((long[0] - 0.6).abs() < 1e-6 && (long[1] - 0.8).abs() < 1e-6);
        clip(&mut long, 5.0);
        assert!((long[0] - 0.6).abs() < 1e-6);
    }
}
