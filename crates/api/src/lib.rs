//! What a client and the agent say to each other, and the report that every job ends in.
//!
//! The command line is one client; the types here are what it prints with `-o json`, so their keys are a contract.

mod follow;
mod protocol;
mod report;
mod resolve;

pub use follow::{CopyView, EpochView, FollowState, FollowView, HindranceView};
pub use protocol::{
    ApiError, CheckView, Compress, JobView, MigrateOptions, MigrateRequest, Plan, Progress, Range,
    Request, Response, Strategy, StrategyForecast, VmState, VmView,
};
pub use report::{
    DiskReport, DowntimeParts, FaultLatency, MemoryReport, PageCounts, PhaseTimes, Report,
    RoundReport, VerifyReport, WireBytes,
};
pub use resolve::{Choice, Decision, JournalView, PeerAnswer, QemuView, ResolveView, StateView};
