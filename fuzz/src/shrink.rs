//! Makes a failing input small: leaves out pieces, then makes bytes zero, as long as it fails alike.

/// The smallest input found, with at most `max_runs` calls of `fails`. `input` is known to fail.
pub fn shrink(input: Vec<u8>, max_runs: u32, mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut best = input;
    let mut runs = 0;
    let mut attempt = |candidate: &[u8]| {
        runs += 1;
        (runs <= max_runs).then(|| fails(candidate))
    };
    loop {
        let before = best.clone();
        let mut piece = best.len().next_power_of_two() / 2;
        while piece > 0 {
            let mut at = 0;
            while at < best.len() {
                let end = (at + piece).min(best.len());
                let candidate = [&best[..at], &best[end..]].concat();
                match attempt(&candidate) {
                    Some(true) => best = candidate,
                    Some(false) => at += piece,
                    None => return best,
                }
            }
            piece /= 2;
        }
        for at in 0..best.len() {
            if best[at] == 0 {
                continue;
            }
            let mut candidate = best.clone();
            candidate[at] = 0;
            match attempt(&candidate) {
                Some(true) => best = candidate,
                Some(false) => {}
                None => return best,
            }
        }
        if best == before {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_goes() {
        let input: Vec<u8> = (0..200).collect();
        let fails = |bytes: &[u8]| bytes.contains(&17) && bytes.iter().any(|byte| *byte > 150);
        let small = shrink(input, 10_000, fails);
        assert!(fails(&small) && small.len() == 2, "{small:?}");
    }

    #[test]
    fn runs_are_bounded() {
        let mut runs = 0;
        let input = vec![1; 1000];
        let same = shrink(input.clone(), 5, |_| {
            runs += 1;
            false
        });
        assert_eq!((same, runs), (input, 5));
    }
}
