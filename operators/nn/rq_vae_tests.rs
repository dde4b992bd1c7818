//! The quantised autoencoder: gradients, planted groups, repeatable files, odd inputs.

use super::{super::grad_check, *};
use crate::nn::{matrix::add_scaled, random::Stream};

/// Twelve planted centres in 24 dimensions; around each, vectors vary along the same four
/// directions and a little everywhere: (vectors, centre of each).
fn planted(n: usize) -> (Vec<Vec<f32>>, Vec<usize>) {
    const DIM: usize = 24;
    let draw = |name, len: usize, deviation| {
        let mut values = vec![0.0; len];
        Stream::new(1, name, &[]).fill_centred(deviation, &mut values);
        values
    };
    let (centres, directions) = (draw("centres", 12 * DIM, 1.0), draw("directions", 4 * DIM, 1.0));
    let (along, noise) = (draw("along", 4 * n, 0.25), draw("noise", n * DIM, 0.05));
    let mut stream = Stream::new(1, "centre of each", &[]);
    (0..n)
        .map(|i| {
            let centre = stream.below(12);
            let mut v = noise[i * DIM..][..DIM].to_vec();
            add_scaled(&mut v, 1.0, &centres[centre * DIM..][..DIM]);
            let directions = directions.chunks_exact(DIM).zip(&along[4 * i..]);
            directions.for_each(|(direction, a)| add_scaled(&mut v, *a, direction));
            (v, centre)
        })
        .unzip()
}

fn config() -> RqConfig {
    RqConfig { latent: 16, hidden: 48, codebook: 8, levels: 3, epochs: 150, ..RqConfig::default() }
}

fn fit(vectors: &[Vec<f32>], config: &RqConfig) -> (RqVae, RqReport) {
    RqVae::fit(vectors, config, &mut |_| ()).unwrap()
}

#[test]
fn mlp_gradients() {
    let mut layout = Layout::default();
    let mlp = Mlp::new(&mut layout, "mlp", 3, 5, 2);
    grad_check::check(
        &layout,
        4 * 3,
        |params, x| mlp.forward(params, x).0,
        |params, gradient, x, dy| mlp.backward(params, gradient, x, &mlp.forward(params, x).1, dy),
    );
}

#[test]
fn planted_groups_are_recovered() {
    let (vectors, centres) = planted(600);
    let (model, report) = fit(&vectors, &config());
    assert!(report.reconstruction <= report.residual_kmeans, "{report:?}");
    assert_eq!(report.dead_codes, [0, 0, 0], "{report:?}");
    assert!(report.group_sizes.iter().all(|n| *n >= 8), "{report:?}");
    assert!(report.intra_cosine.unwrap() > report.inter_cosine.unwrap() + 0.5, "{report:?}");
    let group = |v: &Vec<f32>| model.group(&model.quantise(v).unwrap().csid).unwrap();
    let groups: Vec<u32> = vectors.iter().map(group).collect();
    let majority: usize = (0..12)
        .map(|centre| {
            let mut sizes = vec![0usize; model.n_groups()];
            let of_centre = groups.iter().zip(&centres).filter(|(_, c)| **c == centre);
            of_centre.for_each(|(g, _)| sizes[*g as usize] += 1);
            sizes.into_iter().max().unwrap_or(0)
        })
        .sum();
    assert!(majority > 540, "only {majority} of 600 are with the majority of their centre");
}

#[test]
fn the_reported_error_is_that_of_the_reconstructions() {
    let (vectors, _) = planted(100);
    let (model, report) = fit(&vectors, &RqConfig { epochs: 20, ..config() });
    let squares: f64 = vectors
        .iter()
        .map(|v| {
            let back = model.reconstruct(&model.quantise(v).unwrap());
            v.iter().zip(back).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum::<f64>()
        })
        .sum();
    let variance = 1.0 / f64::from(model.scaling.scale * model.scaling.scale);
    let error = squares / (100.0 * 24.0) / variance;
    assert!((error - report.reconstruction).abs() < 1e-4 * error, "{error} against {report:?}");
}

#[test]
fn files_repeat_and_read_back() {
    let (vectors, _) = planted(80);
    let config = RqConfig { epochs: 10, ..config() };
    let (model, _) = fit(&vectors, &config);
    let bytes = model.to_bytes();
    assert_eq!(bytes, fit(&vectors, &config).0.to_bytes());
    let back = RqVae::from_bytes(&bytes).unwrap();
    for v in &vectors {
        let codes = model.quantise(v).unwrap();
        assert_eq!(codes, back.quantise(v).unwrap());
        assert_eq!(model.group(&codes.csid), back.group(&codes.csid));
    }
    assert_eq!(bytes, back.to_bytes());
    assert!(matches!(RqVae::from_bytes(&bytes[..100]), Err(NnError::Format(_))));
}

#[test]
fn odd_inputs() {
    let small = RqConfig { epochs: 5, ..config() };
    let run = |vectors: &[Vec<f32>]| RqVae::fit(vectors, &small, &mut |_| ());
    assert!(matches!(run(&[]), Err(NnError::Empty(_))));
    assert!(matches!(run(&[vec![]]), Err(NnError::Empty(_))));
    assert!(matches!(run(&[vec![1.0], vec![1.0, 2.0]]), Err(NnError::Input { index: 1, .. })));
    assert!(matches!(run(&[vec![f32::NAN]]), Err(NnError::Input { .. })));
    assert!(run(&[vec![f32::MAX, 0.0], vec![f32::MIN, 0.0]]).is_ok());
    let (one, report) = run(&[vec![1.0, 2.0]]).unwrap();
    assert_eq!((one.n_groups(), report.intra_cosine), (1, None));
    let (same, report) = run(&vec![vec![0.3, -0.7]; 50]).unwrap();
    assert_eq!((same.n_groups(), report.tuples), (1, 1));
    assert!(report.reconstruction.is_finite());
    assert!(one.quantise(&[1.0]).is_err() && one.quantise(&[f32::INFINITY, 0.0]).is_err());
    assert!(one.group(&[0]).is_err() && one.group(&[0, 0, 8]).is_err() && one.group(&[7, 7, 7]).is_ok());
    let bad = RqConfig { codebook: 0, ..config() };
    assert!(matches!(RqVae::fit(&[vec![1.0]], &bad, &mut |_| ()), Err(NnError::Config { .. })));
    let untrained = RqConfig { epochs: 0, ..config() };
    assert!(RqVae::fit(&planted(30).0, &untrained, &mut |_| ()).is_ok());
}
