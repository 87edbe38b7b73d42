//! The drive loop of a move that arrives.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use sterna_migration::destination::{Destination, Effect, End, Fact};
use sterna_migration::journal::DestinationRecord;
use sterna_model::{Instant, PageId};

use crate::disk::{Entry, Owner, Record};
use crate::faults::Side;
use crate::hands::Hands;
use crate::message::Message;
use crate::network::ConnectionId;
use crate::oracle::{Ended, Gauge};
use crate::plant::Plant;
use crate::world::{Inbound, World};

/// See the module.
pub(super) struct Drive {
    pub(super) hands: Hands,
    /// The connection that the move was asked for on.
    pub(super) control: ConnectionId,
    /// Who gets answers: that connection, and whoever asked since.
    pub(super) links: Vec<ConnectionId>,
    machine: Option<Destination>,
    effects: VecDeque<Effect>,
    journal_is_open: bool,
    /// A QEMU of ours waits for the guest, or has it.
    pub(super) waiting: bool,
    /// The guest is to run.
    pub(super) guest_ran: bool,
    /// The job was taken up again after a restart.
    pub(super) recovered: bool,
    pub(super) watch_until: Option<Instant>,
    /// When QEMU is asked again to take absent pages by a new stream.
    pub(super) recover_at: Option<Instant>,
    /// Its stream is there: the source may rejoin.
    pub(super) feeds: bool,
    /// Absent pages that the guest waits for.
    pub(super) wanted: BTreeSet<PageId>,
    pub(super) abandoned: bool,
    /// All connections are gone, and the source may come back: for so long what is here is kept.
    pub(super) away: Option<Duration>,
    /// The source made its connections anew, and does not know whether its stream's head had arrived.
    pub(super) head_may_repeat: bool,
    /// When frames were acknowledged last.
    pub(super) acknowledged_at: Option<Instant>,
}

impl Drive {
    pub(super) fn new(hands: Hands, link: ConnectionId) -> Self {
        Self {
            hands,
            control: link,
            links: vec![link],
            machine: None,
            effects: VecDeque::new(),
            journal_is_open: false,
            waiting: false,
            guest_ran: true,
            recovered: false,
            watch_until: None,
            recover_at: None,
            feeds: true,
            wanted: BTreeSet::new(),
            abandoned: false,
            away: None,
            head_may_repeat: false,
            acknowledged_at: None,
        }
    }

    /// A job that is taken up again: nobody is connected yet.
    pub(super) fn again(hands: Hands, waiting: bool, guest_ran: bool) -> Self {
        let drive = Self::new(hands, ConnectionId::MAX);
        let (links, abandoned) = (Vec::new(), true);
        Self {
            links,
            waiting,
            guest_ran,
            abandoned,
            journal_is_open: true,
            recovered: true,
            ..drive
        }
    }

    /// Brings a job that is taken up again as far as it comes by itself.
    pub(super) async fn settle(&mut self, machine: Destination, effects: Vec<Effect>) {
        self.machine = Some(machine);
        self.effects.extend(effects);
        self.perform().await;
    }

    /// For a planted bug: the machine is where pages come in, and nothing was done for that.
    pub(super) fn receives(&mut self) {
        let mut effects = Vec::new();
        let begun = Destination::begin(&mut effects);
        let started = [Fact::Journaled(DestinationRecord::Prepared), Fact::QemuStarted];
        let machine = |machine: Destination, fact| machine.handle(fact, &mut effects);
        self.machine = Some(started.into_iter().fold(begun, machine));
    }

    /// How the job ended, if it did.
    pub(super) fn how_ended(&self) -> Option<End> {
        self.machine.as_ref().and_then(|machine| machine.end().cloned())
    }

    pub(super) fn phase(&self) -> &'static str {
        self.machine.as_ref().map_or("ended", Destination::phase)
    }

    /// Runs until the job is over and its connection gone; tells how it ended.
    pub(super) async fn run(mut self) -> Option<Ended> {
        let mut effects = Vec::new();
        self.machine = Some(Destination::begin(&mut effects));
        self.effects.extend(effects);
        self.go_on().await
    }

    /// The same, from where it is.
    pub(super) async fn go_on(mut self) -> Option<Ended> {
        loop {
            self.perform().await;
            if self.machine.as_ref().is_none_or(|machine| machine.end().is_some()) {
                break;
            }
            let until = [self.watch_until, self.recover_at].into_iter().flatten().min();
            match self.hands.hear(until).await {
                Some(inbound) => self.inbound(inbound).await,
                None if self.recover_at == until => self.recover_stream().await,
                None => {
                    self.watch_until = None;
                    if self.away.is_some() {
                        self.hands.with(|world| world.kept_for_too_long());
                    }
                    self.fact(Fact::PeerLost("it fell silent, or did not come back".into()));
                }
            }
        }
        self.hands.with(|world| world.receiver = None);
        self.answer_latecomers().await;
        self.how_ended().map(Ended::Destination)
    }

    /// A job that is over still answers whoever asks on its connections.
    async fn answer_latecomers(&mut self) {
        while !self.abandoned {
            match self.hands.hear(None).await {
                Some(Inbound::Closed(link)) => self.forget(link),
                Some(Inbound::Message(
                    link,
                    Message::Commit | Message::Inquire | Message::Rejoin,
                )) => {
                    self.asked_by(link);
                    self.fact(Fact::Asked);
                }
                Some(Inbound::Message(link, Message::Prepare)) => {
                    self.hands.send(link, Message::Refused).await;
                }
                _ => {}
            }
            self.perform().await;
        }
    }

    async fn inbound(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Message(link, message) => self.message(link, message).await,
            Inbound::Closed(link) => {
                self.forget(link);
                if link == self.control {
                    self.lost("the connection is closed".into());
                }
            }
            Inbound::Progress => self.progressed().await,
            Inbound::LinkLost(joins, why) => self.link_lost(joins, why),
            Inbound::Unawaited(why) => self.not_connected(why),
            Inbound::StreamFailed(why) => self.stream_failed(why),
            Inbound::Requested(page) => self.requested(page).await,
            Inbound::FeedBroken => self.fact(Fact::StreamBroken("QEMU closed it".into())),
            Inbound::QemuComplete => self.fact(Fact::MemoryComplete),
            Inbound::QemuLoaded => {
                let root = self.hands.with(|world| world.receiver.as_ref()?.root());
                self.fact(match root {
                    Some(root) => Fact::MemoryLoaded(root),
                    None => Fact::Failed("QEMU loaded a stream that was not sent".into()),
                });
                if self.hands.errs(Plant::ResumeWithoutCommit) {
                    let _ = self.hands.qemu(crate::qemu::Command::Cont).await;
                }
            }
            Inbound::QemuDied(why) => self.fact(Fact::QemuDied(why)),
            _ => {}
        }
    }

    pub(super) fn fact(&mut self, fact: Fact) {
        if matches!(fact, Fact::PeerLost(_)) && !self.may_be_rejoined() {
            self.hands.with(World::link_is_the_end);
        }
        let Some(machine) = self.machine.take() else { return };
        let phase = machine.phase();
        self.hands.with(|world| world.note(|| format!("Destination in {phase}: {fact:?}")));
        let mut effects = Vec::new();
        let machine = machine.handle(fact, &mut effects);
        self.machine = Some(machine);
        self.effects.extend(effects);
        let waiting = self.effects.len();
        self.hands.with(|world| world.gauge(Gauge::Effects, waiting));
    }

    async fn perform(&mut self) {
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::StartQemu => self.start_qemu().await,
                Effect::Journal(record) => self.journal(record).await,
                Effect::Answer(answer) => self.answer(answer).await,
                Effect::Resume(entitlement) => self.resume(entitlement).await,
                Effect::RecoverStream => self.recover_stream().await,
                Effect::KillQemu => self.kill().await,
                Effect::WatchSource(_)
                    if self.away.is_some() && self.hands.errs(Plant::KeepsForEver) => {}
                Effect::WatchSource(limit) => {
                    self.watch_until = Some(self.hands.now().after(limit));
                }
                Effect::End(end) => self.end(&end).await,
            }
        }
    }

    async fn journal(&mut self, record: DestinationRecord) {
        if record == DestinationRecord::Entitled && self.hands.errs(Plant::ResumeBeforeEntitled) {
            self.resume_early().await;
        }
        let written = self.write_down(record).await;
        self.fact(match written {
            Ok(()) => Fact::Journaled(record),
            Err(why) => Fact::JournalFailed(why),
        });
    }

    /// A journal begins with the first state that is to be durable; its subject stands for *prepared*.
    async fn write_down(&mut self, record: DestinationRecord) -> Result<(), String> {
        if !self.journal_is_open {
            self.hands.with(|world| world.host(Side::Destination).disk.begin_again())?;
            self.hands.append(Entry::DestinationOf).await?;
            self.journal_is_open = true;
            if record == DestinationRecord::Prepared {
                return Ok(());
            }
        }
        self.hands.append(Entry::Destination(record)).await
    }

    async fn end(&mut self, end: &End) {
        if self.waiting {
            let (owner, process) = match end {
                End::Running => (Owner::Here, true),
                End::Lost(_) => (Owner::Lost, false),
                _ => (Owner::Unknown, true),
            };
            self.hands.store(Some(Record { owner, process })).await;
        }
        // A QEMU that is there may be resumed at the next start: the guest is this host's.
        let alive = self.hands.with(|world| world.is_alive(Side::Destination));
        let may_go_on = self.recovered && matches!(end, End::Unknown(_)) && alive;
        let silent = self.recovered && self.hands.errs(Plant::FoundEntitledStaysSilent);
        let closes = *end != End::Running && self.journal_is_open && !may_go_on && !silent;
        if closes {
            let _ = self.hands.append(Entry::Ended).await;
        }
        let how = Ended::Destination(end.clone());
        self.hands.with(|world| world.job_ended(Side::Destination, how));
    }
}
