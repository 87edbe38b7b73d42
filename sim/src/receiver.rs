//! The destination's bulk side: receivers that write pages into the memory that QEMU shares, with a table of what is there.
//!
//! Once the guest runs and lacks pages, they give them to QEMU's stream instead, each once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sterna_model::{PageHash, PageId, Root};

use crate::faults::Side;
use crate::guest::{hash_of, hash_of_absent};
use crate::message::{Final, Sent};
use crate::network::Closing;
use crate::oracle::Gauge;
use crate::plant::Plant;
use crate::postcopy::Fed;
use crate::qemu::RunState;
use crate::world::{Inbound, World};

/// See the module.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// Frames applied, by connection.
    frames: Vec<u64>,
    attached: Vec<bool>,
    /// Frames that came before the memory was open: they wait in their sockets.
    early: Vec<VecDeque<Vec<Sent>>>,
    open: bool,
    table: Vec<(u32, PageHash)>,
    root: Root,
    missing: BTreeMap<PageId, u32>,
    asked: Vec<(PageId, u32)>,
    /// The source's last word; a later one replaces it.
    pub last: Option<Final>,
    /// The devices' state.
    pub tail: Option<u64>,
    /// QEMU reads a stream, whose end is still to come.
    pub loading: bool,
    progress_told: bool,
    /// Pages that are told to be absent.
    absent: BTreeSet<PageId>,
    /// What QEMU has not been fed of these, since its stream began.
    lacking: BTreeSet<PageId>,
    feeding: bool,
    /// How often connections were made anew.
    pub joins: u32,
}

impl Receiver {
    /// Nothing has arrived yet.
    pub(crate) fn new(pages: u32, connections: usize) -> Self {
        Self {
            frames: vec![0; connections],
            attached: vec![false; connections],
            early: vec![VecDeque::new(); connections],
            open: false,
            table: vec![(0, PageHash::ZERO); pages as usize],
            root: Root::ZERO_MEMORY,
            missing: BTreeMap::new(),
            asked: Vec::new(),
            last: None,
            tail: None,
            loading: false,
            progress_told: false,
            absent: BTreeSet::new(),
            lacking: BTreeSet::new(),
            feeding: false,
            joins: 0,
        }
    }

    /// Of a guest that runs and lacks pages: nobody is connected.
    pub(crate) fn feeding(connections: usize, lacking: BTreeSet<PageId>) -> Self {
        Self { open: true, feeding: true, lacking, ..Self::new(0, connections) }
    }

    /// What arrives from now on is for QEMU's stream.
    pub(crate) fn begin_feeding(&mut self) {
        self.feeding = true;
        self.lacking.clone_from(&self.absent);
    }

    /// Pages that are told to be absent.
    pub(crate) const fn absent(&self) -> &BTreeSet<PageId> {
        &self.absent
    }

    /// What QEMU was not fed yet.
    pub(crate) const fn lacking(&self) -> &BTreeSet<PageId> {
        &self.lacking
    }

    /// Connections are made anew: all of them may come once more, and none has brought anything.
    pub(crate) fn join_again(&mut self) {
        self.joins += 1;
        self.attached.iter_mut().for_each(|attached| *attached = false);
        self.early.iter_mut().for_each(VecDeque::clear);
        self.frames.iter_mut().for_each(|frames| *frames = 0);
    }

    /// Frames applied, of each connection.
    pub(crate) fn frames(&self) -> Vec<u64> {
        self.frames.clone()
    }

    /// The pages that were asked for and have not come.
    pub(crate) fn missing(&self) -> Vec<(PageId, u32)> {
        self.missing.iter().map(|(page, version)| (*page, *version)).collect()
    }

    /// Whether a page is here with this hash.
    pub(crate) fn has(&self, page: PageId, hash: PageHash) -> bool {
        self.table.get(page.index()).is_some_and(|(_, found)| *found == hash)
    }

    /// Whether a page was asked for and has not come.
    pub(crate) fn misses(&self, page: PageId) -> bool {
        self.missing.contains_key(&page)
    }

    /// Takes a data connection, each once.
    pub(crate) fn attach(&mut self, number: usize) -> bool {
        self.attached.get_mut(number).is_some_and(|slot| !std::mem::replace(slot, true))
    }

    /// Pages to ask for since this was last called; that there was progress is heard.
    pub(crate) fn take_asked(&mut self) -> Vec<(PageId, u32)> {
        self.progress_told = false;
        std::mem::take(&mut self.asked)
    }

    /// The source's root, once, when everything is applied and nothing is missing.
    pub(crate) fn take_complete(&mut self) -> Option<Root> {
        let last = self.last.as_ref().filter(|_| self.tail.is_some())?;
        let complete = self.frames == last.frames && self.missing.is_empty() && self.loading;
        let root = last.root;
        complete.then(|| {
            self.loading = false;
            root
        })
    }

    /// The root of what is here; none when no memory was ever opened.
    pub(crate) fn root(&self) -> Option<Root> {
        self.open.then_some(self.root)
    }
}

impl World {
    /// A frame of pages is there.
    pub(crate) fn receive(&mut self, number: usize, pages: &[Sent]) {
        let Some(receiver) = self.receiver.as_mut() else { return };
        if !receiver.attached.get(number).copied().unwrap_or(false) {
            return;
        }
        if !receiver.open {
            return receiver.early[number].push_back(pages.to_vec());
        }
        for sent in pages {
            if std::mem::take(&mut self.decode_fails) {
                let why = "a page's hash is not what was announced".into();
                return self.tell(Side::Destination, Inbound::StreamFailed(why));
            }
            if self.receiver.as_ref().is_some_and(|receiver| receiver.feeding) {
                self.receive_absent(*sent);
            } else {
                self.receive_page(*sent);
            }
        }
        let Some(receiver) = self.receiver.as_mut() else { return };
        receiver.frames[number] += 1;
        if !std::mem::replace(&mut receiver.progress_told, true) {
            self.tell(Side::Destination, Inbound::Progress);
        }
    }

    fn receive_page(&mut self, sent: Sent) {
        let drops = self.errs(Plant::ReceiverDropsVersion) && self.random.chance(5);
        let base_missing = self.base_missing && !sent.whole && !sent.absent && sent.content != 0;
        let Some(receiver) = self.receiver.as_mut() else { return };
        let Some(entry) = receiver.table.get_mut(sent.page.index()) else { return };
        if base_missing {
            self.base_missing = false;
            receiver.missing.insert(sent.page, sent.version);
            receiver.asked.push((sent.page, sent.version));
            let missing = receiver.missing.len();
            self.page_is_undecodable(sent.page);
            self.note(|| format!("page {} lacks its base", sent.page.0));
            return self.gauge(Gauge::Missing, missing);
        }
        if entry.0 >= sent.version {
            return;
        }
        let hash = if sent.absent { hash_of_absent() } else { hash_of(sent.content) };
        if sent.absent {
            receiver.absent.insert(sent.page);
        } else {
            receiver.absent.remove(&sent.page);
        }
        receiver.root.replace(sent.page, entry.1, hash);
        *entry = (sent.version, hash);
        if receiver.missing.get(&sent.page).is_some_and(|version| *version < sent.version) {
            receiver.missing.remove(&sent.page);
        }
        if drops {
            return self.note(|| format!("PLANT page {} is not written", sent.page.0));
        }
        if sent.absent {
            return;
        }
        if let Some(qemu) = self.host(Side::Destination).qemu.as_mut() {
            qemu.guest.memory[sent.page.index()] = sent.content;
        }
    }

    /// A page that was absent is there: QEMU is fed it, once, and after the last one that there are no more.
    fn receive_absent(&mut self, sent: Sent) {
        let again = self.errs(Plant::PlacesTwice) && self.random.chance(20);
        let Some(receiver) = self.receiver.as_mut() else { return };
        if !receiver.lacking.remove(&sent.page) {
            return self.note(|| format!("page {} came twice", sent.page.0));
        }
        let is_last = receiver.lacking.is_empty();
        self.feed(Fed::Page(sent.page, sent.content));
        if again {
            self.note(|| format!("PLANT page {} is fed twice", sent.page.0));
            self.feed(Fed::Page(sent.page, sent.content));
        }
        if is_last {
            self.feed(Fed::End);
        }
    }

    /// Whether pages are applied as they come.
    pub(crate) fn is_memory_open(&self) -> bool {
        self.receiver.as_ref().is_some_and(|receiver| receiver.open)
    }

    /// The layout is known: what came early is applied.
    pub(crate) fn open_memory(&mut self) -> Result<(), String> {
        let Some(receiver) = self.receiver.as_mut() else {
            return Err("the source sent its stream's head before it was prepared for".into());
        };
        if std::mem::replace(&mut receiver.open, true) {
            return Err("the source sent its stream's head twice".into());
        }
        for number in 0..receiver.early.len() {
            while let Some(pages) =
                self.receiver.as_mut().and_then(|receiver| receiver.early[number].pop_front())
            {
                self.receive(number, &pages);
            }
        }
        Ok(())
    }

    /// A data connection has come to its end.
    pub(crate) fn receiver_closed(&mut self, number: usize, how: Closing) {
        if how == Closing::Broken && self.receiver.is_some() {
            let joins = self.receiver.as_ref().map_or(0, |receiver| receiver.joins);
            let why = format!("data connection {number} is broken");
            self.tell(Side::Destination, Inbound::LinkLost(joins, why));
        }
    }

    /// The destination's QEMU has its stream to the end.
    pub(crate) fn loaded(&mut self) {
        let tail = self.receiver.as_ref().and_then(|receiver| receiver.tail);
        let (Some(tail), true) = (tail, self.is_alive(Side::Destination)) else { return };
        if std::mem::take(&mut self.load_fails) {
            return self.qemu_dies(Side::Destination, "load of migration failed");
        }
        let absent = self.receiver.as_ref().map(|receiver| receiver.absent().clone());
        let absent = absent.unwrap_or_default();
        let [source, destination] = &mut self.hosts;
        if let (Some(theirs), Some(qemu)) = (&source.qemu, destination.qemu.as_mut()) {
            qemu.guest.device = tail;
            qemu.run = RunState::Paused;
            if !absent.is_empty() {
                qemu.begin_postcopy(&theirs.guest, absent);
            }
        }
        self.tell(Side::Destination, Inbound::QemuLoaded);
    }

    /// The connections for pages are given up: what they would still bring is not heard.
    pub(crate) fn leave_receiver(&mut self) {
        self.close_data(Side::Destination);
        if let Some(receiver) = self.receiver.as_mut() {
            receiver.join_again();
        }
    }
}
