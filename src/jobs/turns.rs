//! [pure] Whose turn it is: the free places of a claim are dealt out to the lines of waiting jobs.
//!
//! A line is what waits in one queue of one tenant for one kind. Called by `jobs::claim_store`; chance comes in from outside.
//!
//! Invariant: no two tenants' shares differ by more than one place, no two lines' of one tenant by more than one, whatever
//! their backlogs; all places are dealt, and of those of a line one in 16 goes to the job that waits longest.

use std::collections::BTreeMap;

use crate::ids::TenantId;

/// One place in so many goes by age, so that the lowest priority moves too.
const BY_AGE: usize = 16;

/// What waits for the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// Whose.
    pub tenant: TenantId,
    /// In which queue.
    pub queue: String,
    /// What is to be done.
    pub kind: String,
}

/// How many places a line has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The line.
    pub line: Line,
    /// All its places; never none.
    pub places: usize,
    /// Those of them that go by age, not by priority.
    pub by_age: usize,
}

/// Deals `places` out: by turns over tenants, and within each over its lines. Who is first is left to chance, for with
/// fewer places than tenants any fixed order would starve the last. `handed_out`: the jobs handed out so far, which tells
/// when it is time for one by age. `draw(n)`: a number below n, each as likely.
pub fn deal(
    lines: Vec<Line>,
    places: usize,
    handed_out: usize,
    draw: &mut impl FnMut(usize) -> usize,
) -> Vec<Share> {
    let mut by_tenant: BTreeMap<TenantId, Vec<(Line, usize)>> = BTreeMap::new();
    for line in lines {
        by_tenant.entry(line.tenant).or_default().push((line, 0));
    }
    let mut tenants: Vec<(usize, Vec<(Line, usize)>)> =
        by_tenant.into_values().map(|lines| (0, lines)).collect();
    shuffle(&mut tenants, draw);
    for (_, lines) in &mut tenants {
        shuffle(lines, draw);
    }
    let mut left = places;
    'dealing: while !tenants.is_empty() {
        for (next, lines) in &mut tenants {
            if left == 0 {
                break 'dealing;
            }
            let turn = *next % lines.len();
            lines[turn].1 += 1;
            *next += 1;
            left -= 1;
        }
    }
    let dealt = tenants.into_iter().flat_map(|(_, lines)| lines).filter(|(_, places)| *places > 0);
    let mut before = handed_out % BY_AGE;
    let share = |(line, places): (Line, usize)| {
        let by_age = (before + places) / BY_AGE;
        before = (before + places) % BY_AGE;
        Share { line, places, by_age }
    };
    dealt.map(share).collect()
}

/// Takes places away until no more than `places` are left: as evenly as they were dealt.
pub fn trim(
    shares: Vec<Share>,
    places: usize,
    handed_out: usize,
    draw: &mut impl FnMut(usize) -> usize,
) -> Vec<Share> {
    if shares.iter().map(|share| share.places).sum::<usize>() <= places {
        return shares;
    }
    deal(shares.into_iter().map(|share| share.line).collect(), places, handed_out, draw)
}

fn shuffle<T>(items: &mut [T], draw: &mut impl FnMut(usize) -> usize) {
    for at in (1..items.len()).rev() {
        items.swap(at, draw(at + 1).min(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn draws(seed: u64) -> impl FnMut(usize) -> usize {
        let mut rng = StdRng::seed_from_u64(seed);
        move |n| rng.random_range(0..n)
    }

    fn lines(lines_of: &[usize]) -> Vec<Line> {
        let line = |tenant: usize, at: usize| Line {
            tenant: TenantId::from_uuid(uuid::Uuid::from_u128(tenant as u128)),
            queue: format!("q{at}"),
            kind: "k".to_owned(),
        };
        lines_of.iter().enumerate().flat_map(|(tenant, n)| (0..*n).map(move |at| line(tenant, at))).collect()
    }

    fn spread(numbers: impl Iterator<Item = usize> + Clone) -> usize {
        numbers.clone().max().unwrap_or(0) - numbers.min().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn places_are_dealt_evenly(lines_of in prop::collection::vec(1usize..6, 1..12), places in 0usize..300, seed: u64) {
            let shares = deal(lines(&lines_of), places, 5, &mut draws(seed));
            prop_assert_eq!(shares.iter().map(|share| share.places).sum::<usize>(), places);
            prop_assert!(shares.iter().all(|share| share.by_age <= share.places && share.places > 0));
            let of = |tenant: u128| shares.iter().filter(move |share| share.line.tenant.uuid().as_u128() == tenant);
            let tenants = 0..lines_of.len() as u128;
            prop_assert!(spread(tenants.clone().map(|tenant| of(tenant).map(|share| share.places).sum())) <= 1);
            for tenant in tenants {
                let missing = lines_of[tenant as usize] > of(tenant).count();
                let places: Vec<usize> = of(tenant).map(|share| share.places).chain(missing.then_some(0)).collect();
                prop_assert!(spread(places.iter().copied()) <= 1);
            }
        }

        #[test]
        fn trimmed_shares_fit(lines_of in prop::collection::vec(1usize..6, 1..12), places in 0usize..300, fit in 0usize..300, seed: u64) {
            let mut rng = draws(seed);
            let shares = deal(lines(&lines_of), places, 5, &mut rng);
            let trimmed = trim(shares, fit, 5, &mut rng);
            prop_assert_eq!(trimmed.iter().map(|share| share.places).sum::<usize>(), places.min(fit));
        }
    }

    #[test]
    fn one_hand_out_in_sixteen_goes_by_age_however_they_are_dealt() {
        let mut rng = draws(7);
        let mut aged = |places: usize, rounds: usize| -> usize {
            (0..rounds).map(|at| deal(lines(&[1]), places, at * places, &mut rng)[0].by_age).sum()
        };
        assert_eq!(aged(1, 160), 10);
        assert_eq!(aged(3, 160), 30);
        assert_eq!(aged(256, 1), 16);
    }

    #[test]
    fn with_fewer_places_than_tenants_everyone_is_served_in_time() {
        let mut rng = draws(7);
        let served: std::collections::BTreeSet<_> = (0..500)
            .flat_map(|_| deal(lines(&[1; 40]), 2, 0, &mut rng))
            .map(|share| share.line.tenant)
            .collect();
        assert_eq!(served.len(), 40);
    }
}
