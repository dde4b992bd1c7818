//! "Did you mean": the known name nearest to a wrong one.
//!
//! Edit distance with transpositions, at most a third of the longer word: a typing error is answered, an
//! unrelated word is not.

/// Characters beyond which a name is not compared.
const LONGEST: usize = 100;

/// The name nearest to `wrong`, if one is near; of equally near ones, the first.
pub(crate) fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = wrong.chars().count();
    // A name of thousands of characters is no typing slip, and the distance is quadratic.
    if length > LONGEST {
        return None;
    }
    let near = |distance: usize, name: &str| {
        let longer = length.max(name.chars().count());
        distance <= longer.div_ceil(3) && distance < longer
    };
    names
        .into_iter()
        .filter(|name| name.len() <= 4 * LONGEST)
        .map(|name| (strsim::osa_distance(&wrong.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, name)| near(*distance, name))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `; did you mean ‹name›?`, or nothing.
pub(crate) fn did_you_mean<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(wrong, names).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_answered_and_other_words_are_not() {
        assert_eq!(nearest("ratign", ["user_id", "rating"]), Some("rating"));
        assert_eq!(nearest("colour", ["user_id", "rating"]), None);
        assert_eq!(did_you_mean("Rating", ["rating"]), "; did you mean `rating`?");
    }
}
