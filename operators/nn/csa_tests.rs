//! The encoder: what a fit learns, what its bits may not depend on, odd data and settings.

use super::*;
use crate::nn::random::Stream;

fn config() -> CsaConfig {
    CsaConfig {
        dim: 16,
        layers: 2,
        heads: 2,
        max_length: 8,
        batch: 8,
        max_epochs: 12,
        ..CsaConfig::default()
    }
}

fn fit(data: &[Sequence], n_items: usize, config: &CsaConfig) -> Result<(CsaEncoder, FitReport), NnError> {
    CsaEncoder::fit(data, n_items, &[3, 2], config, &mut |_| ())
}

/// Users who walk through twelve items in a circle, from random places.
fn circle(users: usize) -> Vec<Sequence> {
    let mut stream = Stream::new(2, "circle", &[]);
    (0..users)
        .map(|_| {
            let (start, length) = (stream.below(12) as u32, 3 + stream.below(20) as u32);
            let items = (start..start + length).map(|i| 1 + i % 12).collect();
            Sequence { items, features: vec![stream.below(4) as u32, stream.below(3) as u32] }
        })
        .collect()
}

#[test]
fn a_planted_successor_is_learnt() {
    let config = CsaConfig { learning_rate: 5e-3, ..config() };
    let (encoder, report) = fit(&circle(120), 24, &config).unwrap();
    let first = report.epochs[0].held_out_loss.unwrap();
    let best = report.epochs[report.best_epoch - 1].held_out_loss.unwrap();
    assert!(best < 0.3 && best < first / 3.0, "{first} to {best}");
    let before: Vec<Sequence> = (1..=12)
        .map(|i| Sequence { items: vec![i, i % 12 + 1, (i + 1) % 12 + 1], features: vec![0, 0] })
        .collect();
    let scores = encoder.next_item_scores(&before).unwrap();
    let best = |scores: &Vec<f32>| 1 + (0..24).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
    let right = (1..=12).zip(&scores).filter(|(i, scores)| best(scores) == (i + 2) % 12 + 1).count();
    assert!(right >= 11, "{right} of 12");
}

#[test]
fn a_vector_does_not_depend_on_the_batch() {
    let data = circle(40);
    let (encoder, _) = fit(&data, 12, &CsaConfig { max_epochs: 1, ..config() }).unwrap();
    let together = encoder.encode(&data).unwrap();
    let mut order: Vec<usize> = (0..data.len()).collect();
    Stream::new(0, "order", &[]).shuffle(&mut order);
    let shuffled: Vec<Sequence> = order.iter().map(|i| data[*i].clone()).collect();
    for (i, vector) in order.iter().zip(encoder.encode(&shuffled).unwrap()) {
        assert_eq!(together[*i], vector);
        assert_eq!(encoder.encode(&data[*i..=*i]).unwrap(), [vector]);
    }
}

#[test]
fn the_fit_does_not_depend_on_the_number_of_threads() {
    let data = circle(30);
    let config = CsaConfig { max_epochs: 2, ..config() };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| fit(&data, 12, &config).unwrap().0.to_bytes())
    };
    let one = on(1);
    assert_eq!(one, on(1));
    assert_eq!(one, on(3));
    let other = CsaConfig { seed: 1, ..config };
    assert_ne!(one, fit(&data, 12, &other).unwrap().0.to_bytes());
}

#[test]
fn files_read_back() {
    for pool in [Pool::Last, Pool::Mean] {
        let data = circle(10);
        let (encoder, _) = fit(&data, 12, &CsaConfig { max_epochs: 1, pool, ..config() }).unwrap();
        let back = CsaEncoder::from_bytes(&encoder.to_bytes()).unwrap();
        assert_eq!(back.encode(&data).unwrap(), encoder.encode(&data).unwrap());
        assert_eq!(back.to_bytes(), encoder.to_bytes());
    }
    assert!(matches!(CsaEncoder::from_bytes(b"no model"), Err(NnError::Format(_))));
}

#[test]
fn unknown_and_old_items_are_passed_over_and_features_count() {
    let (encoder, _) = fit(&circle(20), 12, &CsaConfig { max_epochs: 1, ..config() }).unwrap();
    let encode = |items: &[u32], features: [u32; 2]| {
        let sequence = Sequence { items: items.to_vec(), features: features.to_vec() };
        encoder.encode(&[sequence]).unwrap().remove(0)
    };
    assert_eq!(encode(&[0, 3, 0, 4], [1, 1]), encode(&[3, 4], [1, 1]));
    assert_eq!(encode(&[9, 1, 2, 3, 4, 5, 6, 7, 8], [1, 1]), encode(&[1, 2, 3, 4, 5, 6, 7, 8], [1, 1]));
    assert_eq!(encode(&[0], [2, 1]), encode(&[], [2, 1]));
    assert_ne!(encode(&[], [2, 1]), encode(&[], [1, 1]));
    assert_ne!(encode(&[3, 4], [1, 1]), encode(&[4, 3], [1, 1]));
}

#[test]
fn odd_data() {
    let of = |items: &[u32]| Sequence { items: items.to_vec(), features: vec![0, 0] };
    let run = |data: &[Sequence], n| fit(data, n, &CsaConfig { max_epochs: 2, ..config() });
    assert!(matches!(run(&[], 5), Err(NnError::Empty(_))));
    assert!(matches!(run(&[of(&[]), of(&[0, 0])], 5), Err(NnError::Empty(_))));
    assert!(matches!(run(&[of(&[1])], 0), Err(NnError::Empty(_))));
    assert!(matches!(run(&[of(&[1]), of(&[6])], 5), Err(NnError::Input { index: 1, .. })));
    let stray = Sequence { items: vec![1], features: vec![4, 0] };
    assert!(matches!(run(&[stray], 5), Err(NnError::Input { .. })));
    assert!(matches!(run(&[Sequence { items: vec![1], features: vec![] }], 5), Err(NnError::Input { .. })));
    let (_, report) = run(&[of(&[1])], 5).unwrap();
    assert_eq!((report.held_out_users, report.epochs[1].held_out_loss, report.best_epoch), (0, None, 2));
    let (_, report) = run(&[of(&[1, 2])], 5).unwrap();
    assert_eq!((report.held_out_users, report.targets), (1, 1));
    assert!(run(&[of(&[1, 1, 1, 1]), of(&[1, 1])], 1).is_ok());
}

#[test]
fn settings_out_of_range() {
    let broken = [
        CsaConfig { heads: 3, ..config() },
        CsaConfig { dim: 0, ..config() },
        CsaConfig { dropout: 1.0, ..config() },
        CsaConfig { learning_rate: f32::NAN, ..config() },
        CsaConfig { max_epochs: 0, ..config() },
    ];
    for config in broken {
        assert!(matches!(fit(&circle(3), 12, &config), Err(NnError::Config { .. })), "{config:?}");
    }
}

#[test]
fn hit_rates_count_ranks() {
    let data = circle(20);
    let (encoder, _) = fit(&data, 12, &CsaConfig { max_epochs: 1, ..config() }).unwrap();
    // Of twelve items, ten are hits: two targets miss, whatever the scores.
    let sequence = vec![data[0].clone(); 12];
    let all: Vec<u32> = (1..=12).collect();
    assert!((hit_rate_at_10(&encoder, &sequence, &all, false).unwrap() - 10.0 / 12.0).abs() < 1e-9);
    let seen = Sequence { items: vec![1, 2, 3], features: vec![0, 0] };
    assert_eq!(hit_rate_at_10(&encoder, &[seen], &[4], true).unwrap(), 1.0);
    assert!(hit_rate_at_10(&encoder, &[], &[], false).is_err());
    assert!(hit_rate_at_10(&encoder, &data[..1], &[13], false).is_err());
}
