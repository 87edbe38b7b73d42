//! How fast the codec is on one core, and what a delta costs. Prints one line for each measurement.
//!
//! With the name of a file as its argument, it measures that content too, repeated to fill 64 MiB.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_model::{PAGE_BYTES, Page, PageHash, PageId};
use sterna_page_codec::{
    BatchStats, Decoder, Effort, Encoder, EncoderConfig, Hint, Known, Level, MAX_BATCH_PAGES,
    Missing, PageKey, PageStore, Stored, is_zero, page_hash, page_hashes,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Pages of the guest: 64 MiB.
const PAGES: u32 = 16_384;
const KEY: PageKey = PageKey([5; 32]);
/// Memory for digests that holds all pages.
const DIGEST_BYTES: usize = 8 << 20;

fn main() -> Outcome<()> {
    let random: Vec<Page> = (0..PAGES).map(random_page).collect();
    let text: Vec<Page> = (0..PAGES).map(text_page).collect();
    let file = std::env::args_os().nth(1).map(file_pages).transpose()?;
    let zero = vec![[0; PAGE_BYTES]; PAGES as usize];
    rate("hash, one by one", || {
        random.iter().for_each(|page| {
            black_box(page_hash(&KEY, page));
        })
    });
    rate("hash, a batch at a time", || {
        let mut hashes = [PageHash::ZERO; MAX_BATCH_PAGES];
        for pages in random.chunks(MAX_BATCH_PAGES) {
            page_hashes(&KEY, pages, black_box(&mut hashes));
        }
    });
    rate("is_zero, zero pages", || {
        zero.iter().for_each(|page| {
            black_box(is_zero(page));
        })
    });
    rate("is_zero, others", || {
        random.iter().for_each(|page| {
            black_box(is_zero(page));
        })
    });
    let levels = [-7, -5, -3, -1, 1, 2, 3, 6, 9].into_iter().filter_map(Level::new);
    for effort in [Effort::Raw].into_iter().chain(levels.map(Effort::Zstd)) {
        for (name, pages) in [("random", &random), ("text", &text), ("zero", &zero)] {
            round_trip(name, pages, effort)?;
        }
        if let Some(pages) = &file {
            round_trip("file", pages, effort)?;
        }
    }
    for (name, contents, digests) in
        [("contents", 80 << 20, 0), ("digests", 0, DIGEST_BYTES), ("both", 3 << 20, DIGEST_BYTES)]
    {
        writer(name, &random, contents, digests)?;
    }
    Ok(())
}

/// First sends of a whole memory: encoder and decoder, without deltas.
fn round_trip(name: &str, pages: &[Page], effort: Effort) -> Outcome<()> {
    let mut encoder = encoder(0, 0)?;
    let mut decoder = Decoder::new(KEY, PAGES)?;
    let mut store = Store::new();
    let [mut push, mut finish, mut decode] = [Duration::ZERO; 3];
    let mut wire = 0;
    let mut hashes = [PageHash::ZERO; MAX_BATCH_PAGES];
    for batch in (0..PAGES).collect::<Vec<_>>().chunks(MAX_BATCH_PAGES) {
        let started = Instant::now();
        let contents = &pages[batch[0] as usize..][..batch.len()];
        encoder.hash(contents, &mut hashes);
        for (page, (content, hash)) in batch.iter().zip(contents.iter().zip(hashes)) {
            encoder.push_hashed(PageId(*page), content, hash, Hint::Cold)?;
        }
        let pushed = Instant::now();
        let bytes = encoder.finish(effort).bytes;
        let finished = Instant::now();
        decoder.decode(bytes, &mut store)?;
        push += pushed - started;
        finish += finished - pushed;
        decode += finished.elapsed();
        wire += bytes.len();
    }
    println!(
        "{name:8} {effort:?}: push {:.0} MB/s, finish {:.0} MB/s, decode {:.0} MB/s, {:.2} % of raw",
        megabytes_per_second(push),
        megabytes_per_second(finish),
        megabytes_per_second(decode),
        wire as f64 * 100.0 / bytes_of_memory(),
    );
    Ok(())
}

/// A guest that writes 8 bytes to each page, over and over.
fn writer(name: &str, random: &[Page], contents: usize, digests: usize) -> Outcome<()> {
    let mut pages = random.to_vec();
    let mut encoder = encoder(contents, digests)?;
    for round in 0..6_u32 {
        let (started, mut stats) = (Instant::now(), BatchStats::default());
        for batch in (0..PAGES).collect::<Vec<_>>().chunks(MAX_BATCH_PAGES) {
            for page in batch {
                encoder.push(PageId(*page), &pages[*page as usize], Hint::Hot)?;
            }
            let found = encoder.finish(Effort::Zstd(Level::FAST)).stats;
            stats.wire_bytes += found.wire_bytes;
            stats.pages.delta += found.pages.delta;
        }
        println!(
            "writer, {name:8} round {round}: {} deltas of {PAGES}, {:.1} bytes a page, {:.0} MB/s",
            stats.pages.delta,
            stats.wire_bytes as f64 / f64::from(PAGES),
            megabytes_per_second(started.elapsed()),
        );
        for (number, page) in (0_u32..).zip(&mut pages) {
            let at = (number.wrapping_mul(2_654_435_761) >> 5) as usize % (PAGE_BYTES / 8) * 8;
            page[at..at + 8].copy_from_slice(
                &u64::from(round * 77 + number).wrapping_mul(u64::MAX / 59).to_le_bytes(),
            );
        }
    }
    Ok(())
}

fn encoder(content_cache_bytes: usize, digest_bytes: usize) -> Outcome<Encoder> {
    let known = Arc::new(Known::new(PAGES));
    Ok(Encoder::new(EncoderConfig { key: KEY, known, content_cache_bytes, digest_bytes })?)
}

fn rate(name: &str, work: impl Fn()) {
    work();
    let started = Instant::now();
    work();
    println!("{name}: {:.0} MB/s", megabytes_per_second(started.elapsed()));
}

fn bytes_of_memory() -> f64 {
    f64::from(PAGES) * PAGE_BYTES as f64
}

fn megabytes_per_second(time: Duration) -> f64 {
    bytes_of_memory() / 1e6 / time.as_secs_f64()
}

fn random_page(seed: u32) -> Page {
    let mut page = [0; PAGE_BYTES];
    let mut state = u64::from(seed) << 20 | 1;
    for word in page.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
    }
    page
}

fn file_pages(name: std::ffi::OsString) -> Outcome<Vec<Page>> {
    let content = std::fs::read(name)?;
    let whole = content.as_chunks().0;
    Ok(whole.iter().copied().cycle().take(PAGES as usize).collect())
}

/// Words of a small vocabulary in random order.
fn text_page(seed: u32) -> Page {
    let noise = random_page(seed);
    let mut page = [b'\n'; PAGE_BYTES];
    let words = noise.iter().map(|byte| format!("word{:x} ", u32::from(*byte).pow(3)));
    for (byte, text) in page.iter_mut().zip(words.flat_map(String::into_bytes)) {
        *byte = text;
    }
    page
}

/// Guest memory without anything else.
struct Store {
    pages: Vec<Page>,
    entries: Vec<Option<Stored>>,
}

impl Store {
    fn new() -> Self {
        // Not zero, so that the memory is there before the clock runs.
        Self { pages: vec![[1; PAGE_BYTES]; PAGES as usize], entries: vec![None; PAGES as usize] }
    }
}

impl PageStore for Store {
    type Error = std::convert::Infallible;

    fn entry(&mut self, page: PageId) -> Option<Stored> {
        self.entries[page.index()]
    }

    fn read(&mut self, page: PageId, into: &mut Page) -> Result<(), Self::Error> {
        *into = self.pages[page.index()];
        Ok(())
    }

    fn write_run(
        &mut self,
        first: PageId,
        entries: &[Stored],
        contents: &[u8],
    ) -> Result<(), Self::Error> {
        for (at, (entry, content)) in entries.iter().zip(contents.as_chunks().0).enumerate() {
            self.entries[first.index() + at] = Some(*entry);
            self.pages[first.index() + at] = *content;
        }
        Ok(())
    }

    fn write_zeros(&mut self, first: PageId, count: u32, version: u32) -> Result<(), Self::Error> {
        for page in first.0..first.0 + count {
            self.confirm(PageId(page), Stored { version, hash: sterna_model::PageHash::ZERO })?;
            self.pages[page as usize] = [0; PAGE_BYTES];
        }
        Ok(())
    }

    fn write_absent(&mut self, first: PageId, count: u32, version: u32) -> Result<(), Self::Error> {
        for page in first.0..first.0 + count {
            self.confirm(PageId(page), Stored { version, hash: sterna_model::PageHash::ABSENT })?;
        }
        Ok(())
    }

    fn confirm(&mut self, page: PageId, entry: Stored) -> Result<(), Self::Error> {
        self.entries[page.index()] = Some(entry);
        Ok(())
    }

    fn missing(&mut self, _page: PageId, _version: u32, _why: Missing) -> Result<(), Self::Error> {
        Ok(())
    }
}
