//! Items: the categories each has, how often it is taken for them, and how good it is.
//!
//! An item is shown for its first category only. Then distinct categories on a slate are distinct items,
//! and the propensity of an item is one product; whether it is clicked depends on all its categories.

use super::{
    draws::Draws,
    names,
    parameters::Parameters,
    population::{pick, running},
};

/// Most categories of an item.
const MOST: usize = 3;

/// All items.
#[derive(Debug)]
pub struct Catalogue {
    names: Vec<String>,
    /// Categories per item, the one it is shown for first; in parts of [`MOST`].
    categories: Vec<[u16; MOST]>,
    counts: Vec<u8>,
    /// Quality per item, as it goes into the logit.
    quality: Vec<f64>,
    /// Items per category, most popular first, with the running sums of their shares.
    shelves: Vec<Shelf>,
}

#[derive(Debug)]
struct Shelf {
    items: Vec<u32>,
    running: Vec<f64>,
}

impl Catalogue {
    pub(super) fn new(parameters: &Parameters) -> Self {
        let (seed, all) = (parameters.seed, parameters.categories as usize);
        // One item for each category first, so that none is empty; the rest as it comes.
        let first = Draws::new(seed, "first categories");
        let mut firsts: Vec<u16> = (0..parameters.items)
            .map(|item| match (item as usize) < all {
                true => item as u16,
                false => first.at(0, u64::from(item)).below(all as u64) as u16,
            })
            .collect();
        Draws::new(seed, "numbers of items").at(0, 0).shuffle(&mut firsts);
        let further = Draws::new(seed, "further categories");
        let quality = Draws::new(seed, "quality");
        let mut catalogue = Catalogue {
            names: (0..all).map(|category| names::category(category, all)).collect(),
            categories: Vec::new(),
            counts: Vec::new(),
            quality: Vec::new(),
            shelves: Vec::new(),
        };
        let mut on_shelf = vec![Vec::new(); all];
        for (item, first) in firsts.into_iter().enumerate() {
            let (categories, count) = further_categories(first, all, &further, item as u64);
            catalogue.categories.push(categories);
            catalogue.counts.push(count);
            catalogue.quality.push(parameters.quality * quality.at(0, item as u64).deviate());
            on_shelf[usize::from(first)].push(item as u32);
        }
        let order = Draws::new(seed, "popularity");
        let shelf = |(category, mut items): (usize, Vec<u32>)| {
            order.at(category as u64, 0).shuffle(&mut items);
            let rank = |rank: usize| libm::pow(rank as f64, -parameters.item_exponent);
            let running = running(&(1..=items.len()).map(rank).collect::<Vec<_>>());
            Shelf { items, running }
        };
        catalogue.shelves = on_shelf.into_iter().enumerate().map(shelf).collect();
        catalogue
    }

    /// Names of the categories, by number.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many items there are.
    pub(super) fn len(&self) -> u32 {
        self.counts.len() as u32
    }

    /// The categories of an item, the one it is shown for first.
    pub(super) fn categories(&self, item: u32) -> &[u16] {
        &self.categories[item as usize][..usize::from(self.counts[item as usize])]
    }

    /// What an item's quality adds to the logit.
    pub(super) fn quality(&self, item: u32) -> f64 {
        self.quality[item as usize]
    }

    /// An item of a category by popularity, with the chance of it.
    pub(super) fn draw(&self, category: usize, unit: f64) -> (u32, f64) {
        let shelf = &self.shelves[category];
        let at = pick(&shelf.running, unit);
        let below = if at == 0 { 0.0 } else { shelf.running[at - 1] };
        (shelf.items[at], shelf.running[at] - below)
    }

    /// Items that are shown for a category, most popular first.
    #[cfg(test)]
    pub(super) fn shelf(&self, category: usize) -> &[u32] {
        &self.shelves[category].items
    }
}

/// Up to two more categories: half of the items have one, a third has two, the others three.
fn further_categories(first: u16, all: usize, further: &Draws, item: u64) -> ([u16; MOST], u8) {
    let mut draw = further.at(0, item);
    let wanted = match draw.below(6) {
        0..3 => 1,
        3..5 => 2,
        _ => 3,
    };
    let mut categories = [first; MOST];
    let mut count = 1;
    while count < wanted.min(all) {
        let next = draw.below(all as u64) as u16;
        if !categories[..count].contains(&next) {
            categories[count] = next;
            count += 1;
        }
    }
    (categories, count as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_have_one_to_three_categories_and_every_category_has_items() {
        let catalogue = Catalogue::new(&Parameters { items: 6_000, ..Parameters::default() });
        let mut counts = [0; MOST];
        for item in 0..catalogue.len() {
            let mut of = catalogue.categories(item).to_vec();
            assert!(catalogue.shelf(usize::from(of[0])).contains(&item));
            counts[of.len() - 1] += 1;
            of.sort_unstable();
            assert!(of.windows(2).all(|pair| pair[0] != pair[1]), "{of:?}");
        }
        for (count, expected) in counts.into_iter().zip([3_000, 2_000, 1_000_i32]) {
            assert!((count - expected).abs() < 200, "{counts:?}");
        }
        let scarce = Catalogue::new(&Parameters { items: 40, ..Parameters::default() });
        assert!((0..40).all(|category| scarce.shelf(category).len() == 1));
        let single = Catalogue::new(&Parameters { items: 9, categories: 1, ..Parameters::default() });
        assert!((0..9).all(|item| single.categories(item) == [0]));
    }
}
