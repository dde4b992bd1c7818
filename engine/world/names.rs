//! Names of categories that are made of words.
//!
//! A language model is to read them, and `category_17` says nothing to it, while one real taxonomy would
//! not do for 18 categories and for 594. So a name is a department and a kind of thing, both from a list;
//! departments share their first word, and preferences are shared along it.

const DEPARTMENTS: [&str; 24] = [
    "Garden", "Kitchen", "Office", "Travel", "Outdoor", "Baby", "Pet", "Music", "Winter", "Fitness",
    "Camping", "Wedding", "School", "Bicycle", "Fishing", "Beauty", "Holiday", "Vintage", "Photo", "Gaming",
    "Sewing", "Boating", "Bathroom", "Car",
];
const KINDS: [&str; 25] = [
    "Tools",
    "Books",
    "Clothes",
    "Furniture",
    "Toys",
    "Lamps",
    "Bags",
    "Shoes",
    "Snacks",
    "Courses",
    "Gifts",
    "Textiles",
    "Electronics",
    "Posters",
    "Storage",
    "Jewellery",
    "Drinks",
    "Tickets",
    "Magazines",
    "Cleaning",
    "Safety",
    "Paint",
    "Games",
    "Crafts",
    "Services",
];

/// How many departments so many categories are spread over; category c is in department c mod that.
pub(super) fn departments(categories: usize) -> usize {
    (1..DEPARTMENTS.len()).find(|n| n * n >= categories).unwrap_or(DEPARTMENTS.len())
}

/// The name of a category.
pub(super) fn category(category: usize, categories: usize) -> String {
    let departments = departments(categories);
    let (kind, department) = (category / departments, category % departments);
    let name = format!("{} {}", DEPARTMENTS[department], KINDS[kind % KINDS.len()]);
    match kind / KINDS.len() {
        0 => name,
        again => format!("{name} {}", again + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_category_has_a_name_of_its_own() {
        for categories in [1, 2, 18, 40, 594, 600, 2_000] {
            let names: std::collections::BTreeSet<String> =
                (0..categories).map(|c| category(c, categories)).collect();
            assert_eq!(names.len(), categories);
        }
        assert_eq!(category(0, 594), "Garden Tools");
        assert_eq!(category(600, 601), "Garden Tools 2");
    }
}
