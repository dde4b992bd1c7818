//! Resolution against a made-up registry, and one fetch of the real data set.

use super::*;

const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// An asset of one file `abc`, whose package no registry has.
const FAKE: Asset = Asset {
    name: "fake",
    about: "three bytes",
    licence: "none",
    folder: "data/fake",
    members: &[Member { file: "f", bytes: 3, sha256: ABC, wheel_member: "fake/f" }],
    hub: None,
    package: Some(Package { name: "coea-no-such-package", version: "0.0.0.dev0" }),
    home: "nowhere",
};

#[test]
fn a_cached_file_is_taken_and_a_wrong_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    let home = folder.path().join("data").join("fake");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("f"), "abc").unwrap();
    assert_eq!(resolve(&cache, &FAKE).unwrap(), home);
    assert!(list(&cache, &[FAKE])[0].cached);

    fs::write(home.join("f"), "abd").unwrap();
    let error = resolve(&cache, &FAKE).unwrap_err();
    assert_eq!(error.exit_code(), 66);
    let text = error.to_string();
    for part in [ABC, "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9", "remove it"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn what_landed_is_checked_before_it_enters_the_cache() {
    let landing = tempfile::tempdir().unwrap();
    let file = landing.path().join("f");
    assert!(check_landed(FAKE.members, landing.path()).is_err());
    fs::write(&file, "xyz").unwrap();
    assert!(check_landed(FAKE.members, landing.path()).unwrap_err().contains(ABC));
    fs::write(&file, "abc").unwrap();
    check_landed(FAKE.members, landing.path()).unwrap();
    let home = tempfile::tempdir().unwrap();
    accept(FAKE.members, landing.path(), home.path()).unwrap();
    assert_eq!(fs::read(home.path().join("f")).unwrap(), b"abc");
}

#[test]
fn a_failed_fetch_says_what_to_put_where() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    let offline = Asset { package: None, ..FAKE };
    let text = resolve(&cache, &offline).unwrap_err().to_string();
    let path = folder.path().join("data").join("fake").join("f");
    assert!(text.contains(&path.display().to_string()) && text.contains(ABC), "{text}");
    assert!(!list(&cache, &[offline])[0].cached);
}

#[test]
fn names_are_suggested_and_folders_asked_for() {
    let error = model("smollm2-135m-instuct").unwrap_err().to_string();
    assert!(error.contains("did you mean `smollm2-135m-instruct`"), "{error}");
    let error = dataset("movielens-1m", None).unwrap_err().to_string();
    assert!(error.contains("ratings.dat") && error.contains("path"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = dataset("movielens-1m", Some(empty.path())).unwrap_err();
    assert!(matches!(error, FetchError::Incomplete { .. }), "{error}");
}

#[test]
fn a_folder_model_has_one_digest_of_all_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path().join("cache"));
    let home = folder.path().join("model");
    fs::create_dir_all(&home).unwrap();
    assert!(matches!(folder_digest(&cache, &home), Err(FetchError::Incomplete { .. })));
    fs::write(home.join("model.safetensors"), "w").unwrap();
    fs::write(home.join("tokenizer.json"), "{}").unwrap();
    let before = folder_digest(&cache, &home).unwrap();
    fs::write(home.join("README.md"), "words").unwrap();
    assert_eq!(folder_digest(&cache, &home).unwrap(), before);
    fs::write(home.join("tokenizer.json"), "{ }").unwrap();
    assert_ne!(folder_digest(&cache, &home).unwrap(), before);
}

#[test]
fn two_at_once_fetch_the_real_data_set_into_a_fresh_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    let asset = &DATASETS[0];
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| resolve(&cache, asset))).collect();
        for run in runs {
            assert_eq!(run.join().unwrap().unwrap(), cache.folder(asset.folder));
        }
    });
    assert!(list(&cache, DATASETS)[0].cached);
    let left: Vec<_> = fs::read_dir(cache.folder(asset.folder)).unwrap().flatten().collect();
    assert_eq!(left.len(), 4, "three files and the lock, nothing half: {left:?}");
}

#[test]
#[ignore = "downloads 93 MB"]
fn the_embedded_default_is_fetched_and_hashed_once() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    let home = resolve(&cache, &MODELS[0]).unwrap();
    assert_eq!(fs::metadata(home.join(MODELS[0].members[0].file)).unwrap().len(), 98_362_432);
    resolve(&cache, &MODELS[0]).unwrap();
    let started = std::time::Instant::now();
    resolve(&cache, &MODELS[0]).unwrap();
    assert!(started.elapsed().as_millis() < 50, "a checked file is not hashed again");
}
