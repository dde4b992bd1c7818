//! Losses over the log-probabilities of labels, each with its gradient.
//!
//! Decision: a label is one action of a policy over a closed set, so every loss is a function of at
//! most one number per label, and the network behind them only has to carry one gradient per label
//! back. They are pure, in double precision, and know neither tokens nor weights; what is drawn on
//! is named with each. Log-probabilities are natural.

/// A loss, and its derivative by each input.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Its value.
    pub value: f64,
    /// Its gradient, in the order of the inputs.
    pub gradient: Vec<f64>,
}

/// A loss of a preferred and a rejected label, and its derivative by the log-probability (or score)
/// of each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// Its value.
    pub value: f64,
    /// By the preferred label.
    pub chosen: f64,
    /// By the rejected label.
    pub rejected: f64,
}

impl PairLoss {
    /// Of a function of the difference of the two, from its value and derivative.
    fn of_margin(value: f64, slope: f64) -> Self {
        Self { value, chosen: slope, rejected: -slope }
    }
}

/// `ln(1 + eˣ)`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + e⁻ˣ)`, without overflow.
pub fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
}

/// Log-probabilities of scores over the labels that are allowed; −∞ for the others.
pub fn log_softmax(scores: &[f64], allowed: &[bool]) -> Vec<f64> {
    let of = |(score, allowed): (&f64, &bool)| if *allowed { *score } else { f64::NEG_INFINITY };
    let scores: Vec<f64> = scores.iter().zip(allowed).map(of).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = scores.iter().map(|score| (score - top).exp()).sum::<f64>().ln() + top;
    scores.iter().map(|score| score - total).collect()
}

/// Cross-entropy of a target distribution, with the gradient by the *scores* the log-probabilities
/// are a softmax of (CoEA eq. 9 with all mass on the label that was clicked).
///
/// The target must be zero where the policy has no mass.
pub fn cross_entropy(log_policy: &[f64], target: &[f64]) -> Loss {
    let mass: f64 = target.iter().sum();
    let parts = target.iter().zip(log_policy).filter(|(target, _)| **target != 0.0);
    let value = -parts.map(|(target, log)| target * log).sum::<f64>();
    let slope = |(target, log): (&f64, &f64)| mass * log.exp() - target;
    Loss { value, gradient: target.iter().zip(log_policy).map(slope).collect() }
}

/// `KL(policy ‖ reference)` over all labels, with the gradient by the scores of the policy
/// (CoEA eq. 17, exact instead of sampled).
pub fn divergence(log_policy: &[f64], log_reference: &[f64]) -> Loss {
    let ratio = |(p, r): (&f64, &f64)| if p.is_finite() { p - r } else { 0.0 };
    let ratios: Vec<f64> = log_policy.iter().zip(log_reference).map(ratio).collect();
    let value: f64 = ratios.iter().zip(log_policy).map(|(ratio, log)| log.exp() * ratio).sum();
    let slope = |(ratio, log): (&f64, &f64)| log.exp() * (ratio - value);
    Loss { value, gradient: ratios.iter().zip(log_policy).map(slope).collect() }
}

/// The distribution that maximises expected reward less `β` times the divergence from a reference:
/// `π* ∝ π_ref · exp(r / β)` (Rafailov et al. 2023, eq. 4). Towards it, [`cross_entropy`] distils.
pub fn optimum(log_reference: &[f64], rewards: &[f64], beta: f64) -> Vec<f64> {
    let scores: Vec<f64> =
        log_reference.iter().zip(rewards).map(|(log, reward)| log + reward / beta).collect();
    let allowed: Vec<bool> = log_reference.iter().map(|log| log.is_finite()).collect();
    log_softmax(&scores, &allowed)
}

/// `−ln σ(r⁺ − r⁻)` of two rewards (Bradley and Terry 1952; CoEA eq. 12).
pub fn reward_pair(chosen: f64, rejected: f64) -> PairLoss {
    let margin = chosen - rejected;
    PairLoss::of_margin(softplus(-margin), -sigmoid(-margin))
}

/// Cross-entropy of a rate in 0…1 against `σ(r)` (Google-v1, pointwise): value and slope by the
/// reward.
pub fn reward_point(reward: f64, rate: f64) -> (f64, f64) {
    (softplus(reward) - rate * reward, sigmoid(reward) - rate)
}

/// What a pair is judged by: log-probabilities under the policy and under its reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Of the preferred label, under the policy.
    pub chosen: f64,
    /// Of the rejected label, under the policy.
    pub rejected: f64,
    /// Of the preferred label, under the reference.
    pub chosen_reference: f64,
    /// Of the rejected label, under the reference.
    pub rejected_reference: f64,
    /// What both are divided by where a loss is taken per token; 1 where a label is one action.
    pub lengths: (f64, f64),
}

impl Pair {
    /// How much more the policy prefers the chosen label than the reference does, by length.
    pub fn margin(&self) -> f64 {
        (self.chosen - self.chosen_reference) / self.lengths.0
            - (self.rejected - self.rejected_reference) / self.lengths.1
    }

    /// Of a function of the margin, from its value and derivative.
    fn loss(&self, value: f64, slope: f64) -> PairLoss {
        PairLoss { value, chosen: slope / self.lengths.0, rejected: -slope / self.lengths.1 }
    }
}

/// How labels of preference that may be wrong are allowed for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Smoothing {
    /// Each pair counts the other way round with probability `ε` (Mitchell 2023, cDPO).
    Conservative(f64),
    /// Unbiased if a share `ε` of the pairs is the wrong way round (Chowdhury et al. 2024).
    Robust(f64),
}

/// `−ln σ(βΔ)` (Rafailov et al. 2023, eq. 7; CoEA eq. 16).
pub fn dpo(pair: &Pair, beta: f64, smoothing: Smoothing) -> PairLoss {
    let z = beta * pair.margin();
    let (right, wrong) = ((softplus(-z), -sigmoid(-z)), (softplus(z), sigmoid(z)));
    let (a, b) = match smoothing {
        Smoothing::Conservative(share) => (1.0 - share, share),
        Smoothing::Robust(share) => ((1.0 - share) / (1.0 - 2.0 * share), -share / (1.0 - 2.0 * share)),
    };
    pair.loss(a * right.0 + b * wrong.0, beta * (a * right.1 + b * wrong.1))
}

/// `max(0, 1 − βΔ)` (Zhao et al. 2023, SLiC).
pub fn hinge(pair: &Pair, beta: f64) -> PairLoss {
    let short = 1.0 - beta * pair.margin();
    pair.loss(short.max(0.0), if short > 0.0 { -beta } else { 0.0 })
}

/// `(Δ − 1/2β)²` (Azar et al. 2023, eq. 17; SERAL eq. 6).
pub fn ipo(pair: &Pair, beta: f64) -> PairLoss {
    let off = pair.margin() - 1.0 / (2.0 * beta);
    pair.loss(off * off, 2.0 * off)
}

/// `1 − σ(β(Δ⁺ − z))` and `1 − σ(β(z − Δ⁻))`, each label judged for itself against the divergence
/// `z` of the batch, which carries no gradient (Ethayarajh et al. 2024, eq. 8).
pub fn kto(pair: &Pair, beta: f64, divergence: f64) -> PairLoss {
    let chosen = beta * ((pair.chosen - pair.chosen_reference) / pair.lengths.0 - divergence);
    let rejected = beta * (divergence - (pair.rejected - pair.rejected_reference) / pair.lengths.1);
    let slope = |z: f64| sigmoid(z) * sigmoid(-z) * beta;
    PairLoss {
        value: sigmoid(-chosen) + sigmoid(-rejected),
        chosen: -slope(chosen) / pair.lengths.0,
        rejected: slope(rejected) / pair.lengths.1,
    }
}

/// `−ln σ(β(log π⁺/|c⁺| − log π⁻/|c⁻|) − γ)`, without a reference (Meng et al. 2024, eq. 6).
pub fn simpo(pair: &Pair, beta: f64, gamma: f64) -> PairLoss {
    let z = beta * (pair.chosen / pair.lengths.0 - pair.rejected / pair.lengths.1) - gamma;
    pair.loss(softplus(-z), -beta * sigmoid(-z))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> Pair {
        Pair {
            chosen: -1.0,
            rejected: -2.5,
            chosen_reference: -1.4,
            rejected_reference: -2.0,
            lengths: (1.0, 1.0),
        }
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
    }

    #[test]
    fn values_are_those_of_other_software() {
        let (beta, none) = (0.1, Smoothing::Conservative(0.0));
        let long = Pair { lengths: (2.0, 3.0), ..pair() };
        close(pair().margin(), 0.9);
        close(dpo(&pair(), beta, none).value, 0.649_159_3);
        close(dpo(&pair(), beta, none).chosen, -0.047_751_5);
        close(dpo(&pair(), beta, Smoothing::Conservative(0.1)).value, 0.658_159_3);
        close(dpo(&pair(), beta, Smoothing::Robust(0.1)).value, 0.637_909_3);
        close(hinge(&pair(), beta).value, 0.91);
        close(ipo(&pair(), beta).value, 16.81);
        close(ipo(&long, beta).value, 21.467_778);
        close(kto(&pair(), beta, 0.05).value, 0.491_250_9 + 0.486_253_5);
        close(simpo(&long, 2.0, 0.5).value, 0.613_282_1);
        close(reward_pair(0.7, 0.2).value, 0.474_077_0);
    }

    #[test]
    fn where_the_policy_is_its_reference() {
        let same = Pair { chosen_reference: -1.0, rejected_reference: -2.5, ..pair() };
        close(dpo(&same, 0.1, Smoothing::Conservative(0.0)).value, std::f64::consts::LN_2);
        close(ipo(&same, 0.1).value, 25.0);
        let log = log_softmax(&[0.3, -1.0, 2.0], &[true; 3]);
        let found = divergence(&log, &log);
        close(found.value, 0.0);
        found.gradient.iter().for_each(|slope| close(*slope, 0.0));
    }

    #[test]
    fn slopes_of_pairs_are_those_of_differences() {
        let long = Pair { lengths: (2.0, 3.0), ..pair() };
        let losses: [&dyn Fn(&Pair) -> PairLoss; 8] = [
            &|p| dpo(p, 0.7, Smoothing::Conservative(0.0)),
            &|p| dpo(p, 0.7, Smoothing::Conservative(0.2)),
            &|p| dpo(p, 0.7, Smoothing::Robust(0.2)),
            &|p| hinge(p, 0.7),
            &|p| ipo(p, 0.7),
            &|p| kto(p, 0.7, 0.3),
            &|p| simpo(p, 2.0, 0.5),
            &|p| reward_pair(p.chosen, p.rejected),
        ];
        let h = 1e-5;
        for (at, loss) in losses.iter().enumerate() {
            for pair in [pair(), long] {
                let found = loss(&pair);
                let by = |change: &dyn Fn(f64) -> Pair| {
                    (loss(&change(h)).value - loss(&change(-h)).value) / (2.0 * h)
                };
                let chosen = by(&|h| Pair { chosen: pair.chosen + h, ..pair });
                let rejected = by(&|h| Pair { rejected: pair.rejected + h, ..pair });
                assert!((found.chosen - chosen).abs() < 1e-8, "{at}: {found:?} {chosen}");
                assert!((found.rejected - rejected).abs() < 1e-8, "{at}: {found:?} {rejected}");
            }
        }
    }

    #[test]
    fn slopes_of_distributions_are_those_of_differences() {
        let scores = [0.4, -0.3, 1.1, 5.0, -2.0];
        let allowed = [true, true, true, false, true];
        let target = [0.2, 0.0, 0.5, 0.0, 0.1];
        let reference = log_softmax(&[1.0, 0.0, -0.5, 0.0, 0.3], &allowed);
        let losses: [&dyn Fn(&[f64]) -> Loss; 2] =
            [&|log| cross_entropy(log, &target), &|log| divergence(log, &reference)];
        let h = 1e-5;
        for loss in losses {
            let found = loss(&log_softmax(&scores, &allowed));
            for (i, slope) in found.gradient.iter().enumerate() {
                let at = |h: f64| {
                    let mut moved = scores;
                    moved[i] += h;
                    loss(&log_softmax(&moved, &allowed)).value
                };
                let expected = (at(h) - at(-h)) / (2.0 * h);
                assert!((slope - expected).abs() < 1e-8, "{i}: {slope} {expected}");
            }
            assert_eq!(found.gradient[3], 0.0);
        }
        let (value, slope) = reward_point(0.8, 0.3);
        close(slope, (reward_point(0.8 + h, 0.3).0 - reward_point(0.8 - h, 0.3).0) / (2.0 * h));
        close(value, -0.3 * sigmoid(0.8).ln() - 0.7 * sigmoid(-0.8).ln());
    }

    #[test]
    fn the_optimum_beats_its_neighbours() {
        let allowed = [true, true, false, true];
        let reference = log_softmax(&[0.5, 0.0, 1.0, -1.0], &allowed);
        let rewards = [0.1, 0.9, 7.0, 0.6];
        let beta = 0.3;
        let value = |log: &[f64]| {
            let reward: f64 = log.iter().zip(&rewards).map(|(log, reward)| log.exp() * reward).sum();
            reward - beta * divergence(log, &reference).value
        };
        let best = optimum(&reference, &rewards, beta);
        assert_eq!(best[2], f64::NEG_INFINITY);
        for i in [0, 1, 3] {
            for h in [-0.01, 0.01] {
                let mut other = best.clone();
                other[i] += h;
                assert!(value(&log_softmax(&other, &allowed)) < value(&best));
            }
        }
    }

    #[test]
    fn nothing_overflows() {
        for z in [-1e4, 1e4] {
            let far = Pair { chosen: z, ..pair() };
            for loss in
                [dpo(&far, 1.0, Smoothing::Conservative(0.0)), simpo(&far, 1.0, 0.0), kto(&far, 1.0, 0.0)]
            {
                assert!(loss.value.is_finite() && loss.chosen.is_finite() && loss.rejected.is_finite());
            }
        }
        assert_eq!((sigmoid(-1e4), sigmoid(1e4)), (0.0, 1.0));
    }
}
