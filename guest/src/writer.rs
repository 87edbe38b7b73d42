//! Which page a load writes next, and how.

use crate::options::{LoadKind, Options};
use crate::page::{mix, next_random};
use crate::working_set::{BadPage, WorkingSet};

/// Chooses pages from its own generator; the same seed gives the same order.
#[derive(Debug)]
pub(crate) struct Writer {
    load: LoadKind,
    state: u64,
    pages: u64,
    hot_pages: u64,
    hot_share_percent: u64,
    writes: u64,
}

impl Writer {
    /// A writer that has written nothing.
    pub(crate) fn new(options: &Options) -> Self {
        let pages = u64::from(options.pages);
        Self {
            load: options.load,
            state: mix(options.seed) | 1,
            pages,
            hot_pages: (pages * u64::from(options.hot_percent) / 100).max(1),
            hot_share_percent: u64::from(options.hot_share_percent),
            writes: 0,
        }
    }

    /// Whether the load writes at all.
    pub(crate) fn is_active(&self) -> bool {
        self.load != LoadKind::Idle
    }

    /// Page writes so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes
    }

    /// Writes one page.
    ///
    /// # Errors
    /// The page was bad before it was written.
    pub(crate) fn write_one(&mut self, set: &mut WorkingSet) -> Result<(), BadPage> {
        let page = self.choose();
        self.writes += 1;
        match self.load {
            LoadKind::Idle => Ok(()),
            LoadKind::Rewrite => set.rewrite(page),
            LoadKind::Uniform | LoadKind::Hotset | LoadKind::Sparse | LoadKind::Passes => {
                set.write(page)
            }
        }
    }

    /// Hot pages are spread evenly over the set: no run of them favours anybody.
    fn choose(&mut self) -> usize {
        if self.load == LoadKind::Passes {
            return usize::try_from(self.writes % self.pages).unwrap_or(0);
        }
        self.state = next_random(self.state);
        let draw = mix(self.state);
        let is_hot = self.load == LoadKind::Hotset && draw % 100 < self.hot_share_percent;
        let page = if is_hot {
            (draw >> 32) % self.hot_pages * (self.pages / self.hot_pages)
        } else {
            (draw >> 32) % self.pages
        };
        usize::try_from(page).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(line: &str) -> Vec<usize> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut writer = Writer::new(&Options::parse(&arguments).unwrap());
        (0..20_000).map(|_| writer.choose()).collect()
    }

    #[test]
    fn a_hot_set_gets_its_share() {
        let choices = choices("hotset size=4M hot=5 share=90");
        let hot = choices.iter().filter(|page| *page % 20 == 0 && *page / 20 < 51).count();
        assert!((17_900..18_500).contains(&hot), "{hot}");
        assert!(choices.iter().all(|page| *page < 1024));
    }

    #[test]
    fn a_pass_writes_each_page_once_in_order() {
        let arguments = ["passes".to_owned(), "size=64k".to_owned()];
        let options = Options::parse(&arguments).unwrap();
        let (mut writer, mut set) = (Writer::new(&options), WorkingSet::filled(&options));
        (0..40).for_each(|_| writer.write_one(&mut set).unwrap());
        let sequences: Vec<u32> = (0..16).map(|page| set.check(page).unwrap()).collect();
        assert_eq!(sequences, [[3; 8], [2; 8]].concat());
    }

    #[test]
    fn a_uniform_load_reaches_every_page() {
        let mut choices = choices("uniform size=1M");
        choices.sort_unstable();
        choices.dedup();
        assert_eq!(choices, (0..256).collect::<Vec<usize>>());
    }
}
