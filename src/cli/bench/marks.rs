//! [pure] Ids in requests and answers, found by what stands before them: to parse the text would cost more than what is measured.
//!
//! Called by `load`, `receiver` and `worker`.

/// The 26 letters of a job's or an event's id.
pub(super) type ItemKey = [u8; 26];

/// Where ids are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    /// What stands before each; nothing: there are none.
    pub(super) before: &'static [u8],
    /// How many are looked for.
    pub(super) count: usize,
    /// Between one and the next one are so many bytes at least, which need no look.
    pub(super) apart: usize,
}

impl Marks {
    /// The ids in a text.
    pub(super) fn keys(self, text: &[u8]) -> impl Iterator<Item = ItemKey> {
        behind(text, self.before, self.apart).take(self.count).filter_map(|rest| rest.first_chunk().copied())
    }
}

/// The first id behind a mark. An empty mark is nowhere.
pub(super) fn item_key(text: &[u8], mark: &[u8]) -> Option<ItemKey> {
    behind(text, mark, 0).next()?.first_chunk().copied()
}

/// What follows each of the marks.
pub(super) fn behind<'a>(text: &'a [u8], mark: &[u8], apart: usize) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let place = rest.windows(mark.len().max(1)).position(|window| window == mark)?;
        let found = rest.get(place + mark.len()..)?;
        rest = found.get(apart..).unwrap_or_default();
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_is_found_and_what_lies_between_is_passed_over() {
        let id = |digit: u8| format!("01jd000000000000000000000{digit}");
        let job = |digit| format!(r#"{{"id":"job_{}","input":"…id\":\"job_…"}}"#, id(digit));
        let text = format!("[{},{},{}]", job(1), job(2), job(3));
        let marks = Marks { before: br#""id":"job_"#, count: 2, apart: 30 };
        let found: Vec<ItemKey> = marks.keys(text.as_bytes()).collect();
        assert_eq!(
            found.iter().map(<[u8; 26]>::as_slice).collect::<Vec<_>>(),
            [id(1).as_bytes(), id(2).as_bytes()]
        );
        assert!(Marks { before: b"", ..marks }.keys(text.as_bytes()).next().is_none());
        assert!(item_key(br#"{"id":"job_01"}"#, br#""id":"job_"#).is_none());
    }
}
