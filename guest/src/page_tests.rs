//! The format must show every fault that a migration can make, for every content and touch.

use super::*;

const MIXED: Shares = Shares { random: 40, text: 30, duplicate: 20 };

fn formats() -> [PageFormat; 2] {
    [PageFormat::new(3, MIXED, Touch::Whole), PageFormat::new(3, MIXED, Touch::Word)]
}

fn generated(format: &PageFormat, index: u32, sequence: u32) -> Page {
    let mut page = Page([0xee; PAGE_BYTES]);
    format.generate(index, sequence, &mut page);
    page
}

#[test]
fn all_contents_occur_in_about_their_shares() {
    let [format, _] = formats();
    let count = |content| (0..10_000).filter(|index| format.content(*index) == content).count();
    for (content, expected) in [
        (Content::Random, 4000),
        (Content::Text, 3000),
        (Content::Duplicate, 2000),
        (Content::Zero, 1000),
    ] {
        assert!(count(content).abs_diff(expected) < 200, "{content:?}: {}", count(content));
    }
}

#[test]
fn generation_repeats_and_the_first_word_agrees() {
    for format in formats() {
        for (index, sequence) in (0..64).flat_map(|index| (0..20).map(move |s| (index, s))) {
            let page = generated(&format, index, sequence);
            assert!(page == generated(&format, index, sequence));
            assert_eq!(page.first_word(), format.first_word(index, sequence));
        }
    }
}

#[test]
fn a_stale_page_always_differs_in_its_first_word() {
    for format in formats() {
        for (index, sequence) in (0..256).flat_map(|index| (0..8).map(move |s| (index, s))) {
            let stale = format.first_word(index, sequence);
            assert_ne!(stale, format.first_word(index, sequence + 1), "{index} {sequence}");
        }
    }
}

#[test]
fn a_page_at_another_index_differs_unless_it_is_a_duplicate_or_zero() {
    let [format, _] = formats();
    for index in 0..256 {
        if matches!(format.content(index), Content::Random | Content::Text) {
            let words = (0..256)
                .filter(|other| format.first_word(*other, 5) == format.first_word(index, 5));
            assert_eq!(words.count(), 1);
        }
    }
}

#[test]
fn a_word_write_changes_eight_bytes() {
    let [_, format] = formats();
    for index in 0..64 {
        let mut page = generated(&format, index, 0);
        for sequence in 1..4 {
            page.set_first_word(format.first_word(index, sequence));
            assert!(page == generated(&format, index, sequence), "page {index}");
        }
    }
}

#[test]
fn duplicates_are_sixteen_pages() {
    let [format, _] = formats();
    let duplicates = (0..2000).filter(|index| format.content(*index) == Content::Duplicate);
    let pages: Vec<Page> = duplicates.map(|index| generated(&format, index, index % 7)).collect();
    let distinct: std::collections::BTreeSet<&[u8]> = pages.iter().map(|p| &p.0[..]).collect();
    assert_eq!(distinct.len(), 16);
}

#[test]
fn faults_are_told_apart() {
    let [format, _] = formats();
    let find = |content| (0..).find(|index| format.content(*index) == content).unwrap();
    let random = find(Content::Random);
    assert_eq!(format.identify(random, &generated(&format, random, 4)), Found::Sequence(4));
    assert_eq!(format.identify(random, &Page::ZERO), Found::Zero);
    assert_eq!(format.identify(random, &generated(&format, random + 1, 4)), Found::Foreign);
    let duplicate = find(Content::Duplicate);
    let pattern = format.pattern(duplicate, 2);
    let page = generated(&format, duplicate, 2);
    assert_eq!(format.identify(random, &page), Found::Pattern(pattern));
}
