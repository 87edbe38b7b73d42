//! A link with rate, delay and loss, for machines whose kernel cannot emulate one.
//!
//! ```text
//!   namespace A                      this process                     namespace B
//!     wire (TUN) --read--> Direction: queue, rate, loss, delay --write--> (TUN) wire
//!     wire (TUN) <--write-- delay, loss, rate, queue :Direction <--read-- (TUN) wire
//! ```
//!
//! [`Link`] says what is emulated and [`Direction`] is one half of it: pure, in virtual time. [`Wires`]
//! are the two devices, [`run`] moves packets between them in real time, [`Report`] is what it has
//! counted. Packets pass unmodified and in order.
//!
//! Not emulated: reordering, duplication, jitter, damaged packets, loss in bursts, a queue that drops
//! before it is full. Rates count IP packets: no frame around them, as an Ethernet would have.

mod devices;
mod direction;
mod driver;
mod link;
mod report;

pub use devices::{OpenError, Wires};
pub use direction::{Counters, Direction, Fate};
pub use driver::{Ending, RunError, run};
pub use link::{Link, LinkError, Loss, MAX_HELD, MTU_BYTES, QUEUE_MIN, default_queue};
pub use report::{DirectionReport, Report};
