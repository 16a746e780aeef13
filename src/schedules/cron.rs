//! [pure] The five or six fields of a cron pattern: what is allowed in each, and the sentence for what is not.
//!
//! Called by `new_schedule` at registration and by `store` for what was accepted before. The grammar is checked here,
//! field by field, because a fault must name its field; the search for times is croner's (`timetable`).
//!
//! Invariant: what this file accepts croner accepts, with the same meaning.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// A pattern is at most this long.
pub const PATTERN_MAX_BYTES: usize = 256;

const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// A pattern that was understood.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// As it was written.
    pub text: String,
    /// For the search.
    pub cron: Cron,
    /// Does `*` stand in the second, minute or hour? Then it means "again and again", and a clock that is put forward
    /// or back changes nothing about that; else it means times on the face of a clock.
    pub recurs: bool,
}

/// Which field, and what may stand in it.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    names: &'static [&'static str],
    /// The number of the first name.
    first: u32,
    extra: Extra,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Extra {
    Nothing,
    DayOfMonth,
    DayOfWeek,
}

const fn plain(name: &'static str, most: u32) -> Field {
    Field { name, least: 0, most, names: &[], first: 0, extra: Extra::Nothing }
}

const FIELDS: [Field; 6] = [
    plain("second", 59),
    plain("minute", 59),
    plain("hour", 23),
    Field { name: "day of month", least: 1, most: 31, names: &[], first: 0, extra: Extra::DayOfMonth },
    Field { name: "month", least: 1, most: 12, names: &MONTHS, first: 1, extra: Extra::Nothing },
    Field { name: "day of week", least: 0, most: 7, names: &WEEKDAYS, first: 0, extra: Extra::DayOfWeek },
];

/// Reads a pattern.
/// # Errors
/// A sentence that names the field.
pub fn parse(text: &str) -> Result<Pattern, String> {
    if text.len() > PATTERN_MAX_BYTES {
        return Err(format!("must be at most {PATTERN_MAX_BYTES} bytes long"));
    }
    let trimmed = text.trim();
    let expanded = if trimmed.starts_with('@') { nickname(trimmed)? } else { trimmed };
    let mut parts: Vec<&str> = expanded.split_whitespace().collect();
    match parts.len() {
        5 => parts.insert(0, "0"),
        6 => {}
        count => {
            return Err(format!(
                "must have five fields (minute, hour, day of month, month, day of week), or six with the second first, as in \"*/5 * * * *\"; it has {count}"
            ));
        }
    }
    let fields: Vec<String> =
        FIELDS.iter().zip(&parts).map(|(field, part)| field.read(part)).collect::<Result<_, _>>()?;
    let recurs = fields[..3].iter().any(|field| field.contains('*'));
    let parser = CronParser::builder().seconds(Seconds::Required).year(Year::Disallowed).build();
    let cron = parser
        .parse(&fields.join(" "))
        .map_err(|error| format!("is not understood as a pattern: {error}"))?;
    Ok(Pattern { text: trimmed.to_owned(), cron, recurs })
}

fn nickname(text: &str) -> Result<&'static str, String> {
    let found = NICKNAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, pattern)| *pattern).ok_or_else(|| {
        let known: Vec<&str> = NICKNAMES.iter().map(|(name, _)| *name).collect();
        format!("{text} is not known; known are {}", known.join(", "))
    })
}

impl Field {
    /// The field with numbers in place of names.
    fn read(&self, text: &str) -> Result<String, String> {
        if text == "?" && self.extra != Extra::Nothing {
            return Ok("*".to_owned());
        }
        let parts: Vec<String> = text.split(',').map(|part| self.part(part)).collect::<Result<_, _>>()?;
        // A star in a list is the whole list, and croner takes it for one only where it stands alone.
        Ok(if parts.iter().any(|part| part == "*") { "*".to_owned() } else { parts.join(",") })
    }

    /// One member of a list.
    fn part(&self, text: &str) -> Result<String, String> {
        if text.is_empty() {
            return Err(self.fault("has an empty place beside a comma"));
        }
        if let Some(special) = self.special(text)? {
            return Ok(special);
        }
        let Some((range, step)) = text.split_once('/') else { return self.range(text) };
        let most = self.most - self.least + 1;
        let step: u32 = number(step)
            .filter(|step| (1..=most).contains(step))
            .ok_or_else(|| self.fault(&format!("has the step \"{step}\"; it must be from 1 to {most}")))?;
        if range != "*" && !range.contains('-') {
            let last = self.most;
            return Err(self.fault(&format!(
                "has \"{text}\"; a step follows \"*\" or a range, as in \"*/{step}\" or \"{range}-{last}/{step}\""
            )));
        }
        Ok(format!("{}/{step}", self.range(range)?))
    }

    fn range(&self, text: &str) -> Result<String, String> {
        if text == "*" {
            return Ok(text.to_owned());
        }
        let Some((first, last)) = text.split_once('-') else { return Ok(self.value(text)?.to_string()) };
        let (first, mut last) = (self.value(first)?, self.value(last)?);
        // A week ends with its Sunday.
        if self.extra == Extra::DayOfWeek && last == 0 && first > 0 {
            last = 7;
        }
        if first > last {
            return Err(self.fault(&format!("has the range \"{text}\", which ends before it begins")));
        }
        Ok(format!("{first}-{last}"))
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        if let Some(place) = named.and_then(|place| u32::try_from(place).ok()) {
            return Ok(place + self.first);
        }
        number(text).filter(|value| (self.least..=self.most).contains(value)).ok_or_else(|| {
            let names = match self.names {
                [first, .., last] => format!(", or {first} to {last}"),
                _ => String::new(),
            };
            self.fault(&format!("has \"{text}\"; it must be from {} to {}{names}", self.least, self.most))
        })
    }

    /// `L`, `LW` and `15W` in the day of month; `5L`, `5#2` and `5#L` in the day of week.
    fn special(&self, text: &str) -> Result<Option<String>, String> {
        let upper = text.to_ascii_uppercase();
        match self.extra {
            Extra::Nothing => Ok(None),
            Extra::DayOfMonth if upper == "L" || upper == "LW" => Ok(Some(upper)),
            Extra::DayOfMonth => {
                let Some(day) = upper.strip_suffix('W') else { return Ok(None) };
                Ok(Some(format!("{}W", self.value(day)?)))
            }
            Extra::DayOfWeek => {
                if upper == "L" {
                    return Err(self.fault("has \"L\"; say the last of which day, as in \"FRI#L\""));
                }
                if let Some((day, which)) = upper.split_once('#') {
                    let fits = which == "L" || number(which).is_some_and(|which| (1..=5).contains(&which));
                    if !fits {
                        return Err(self.fault(&format!("has \"{text}\"; after # comes 1 to 5 or L")));
                    }
                    return Ok(Some(format!("{}#{which}", self.value(day)?)));
                }
                let Some(day) = upper.strip_suffix('L') else { return Ok(None) };
                Ok(Some(format!("{}#L", self.value(day)?)))
            }
        }
    }

    fn fault(&self, what: &str) -> String {
        format!("the field \"{}\" {what}", self.name)
    }
}

/// Digits only: no sign, no space.
fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        for text in [
            "* * * * *",
            "*/5 * * * *",
            "0 9-17/2 * * MON-FRI",
            "0 0 1,15 jan-MAR ?",
            "30 4 L * *",
            "0 12 LW * *",
            "0 12 15W * *",
            "0 9 * * 1#1",
            "0 9 * * fri#L",
            "0 9 * * 5L",
            "0 9 * * FRI-SUN",
            "0 9 * * 7",
            "*/10 * * * * *",
            "  0   0  *  *  *  ",
            "@daily",
            "@Hourly",
            "1,*,3 * * * *",
            "05 08 * * *",
        ] {
            let pattern = parse(text);
            assert!(pattern.is_ok(), "{text}: {pattern:?}");
        }
    }

    #[test]
    fn a_fault_names_its_field() {
        for (text, words) in [
            ("", "it has 0"),
            ("* * * *", "it has 4"),
            ("* * * * * * *", "it has 7"),
            ("60 * * * *", "\"minute\" has \"60\"; it must be from 0 to 59"),
            ("* 24 * * *", "\"hour\""),
            ("61 * * * * *", "\"second\""),
            ("* * 0 * *", "\"day of month\""),
            ("* * * 13 *", "\"month\" has \"13\"; it must be from 1 to 12, or JAN to DEC"),
            ("* * * * 8", "\"day of week\" has \"8\""),
            ("* MON * * *", "\"hour\" has \"MON\""),
            ("* * * JANUARY *", "\"month\" has \"JANUARY\""),
            ("5/10 * * * *", "as in \"*/10\" or \"5-59/10\""),
            ("*/0 * * * *", "\"minute\" has the step \"0\""),
            ("*/61 * * * *", "\"minute\" has the step \"61\""),
            ("30-10 * * * *", "ends before it begins"),
            ("1,,2 * * * *", "empty place"),
            ("* L * * *", "\"hour\" has \"L\""),
            ("* * 32W * *", "\"day of month\" has \"32\""),
            ("* * * * L", "\"day of week\" has \"L\""),
            ("* * * * 5#6", "after # comes 1 to 5 or L"),
            ("+1 * * * *", "\"minute\""),
            ("-1 * * * *", "\"minute\""),
            ("@reboot", "known are @yearly"),
        ] {
            let fault = parse(text).expect_err(text);
            assert!(fault.contains(words), "{text}: {fault}");
        }
    }

    #[test]
    fn a_star_in_the_time_of_day_recurs() {
        for (text, recurs) in
            [("*/5 * * * *", true), ("0 * * * *", true), ("0-59 2 * * *", false), ("0 2,14 * * *", false)]
        {
            assert_eq!(parse(text).expect(text).recurs, recurs, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-0-9*/,#LW?@ A-Za-z]{0,40}|\\PC{0,40}") {
            let _ = parse(&text);
        }

        // What our grammar lets through, croner must not refuse.
        #[test]
        fn croner_agrees(text in "(\\*|[0-5]?[0-9]|\\*/[1-9]|[0-9]-[1-5][0-9]/[1-9]) (\\*|1?[0-9]|2[0-3]) (\\*|L|LW|[1-9]W|[12]?[1-9]) (\\*|JAN|[1-9]) (\\*|[0-7]|MON#[1-5]|[1-5]L)") {
            prop_assert!(parse(&text).is_ok(), "{:?}", parse(&text));
        }
    }
}
