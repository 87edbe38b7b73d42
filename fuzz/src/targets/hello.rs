//! Hello and reply: what a stranger says first.

use arbitrary::{Arbitrary, Unstructured};
use serde_json::json;
use sterna_wire::limits::{MAX_CAPABILITIES, MAX_CAPABILITY_BYTES, MAX_VERSION_BYTES};
use sterna_wire::{Agreed, Capabilities, Hello, Offer, Reply, Role};

use crate::mutate::Mutator;
use crate::signature::{of_error, scale};
use crate::{Made, Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "hello",
    about: "the first frame of either side: hello and reply",
    run,
    make,
    mutators: &[Mutator::Json, Mutator::Json],
    tokens: TOKENS,
    max_bytes: 20 << 10,
    borrowed: &[],
};

#[rustfmt::skip]
const TOKENS: &[&[u8]] = &[
    b"type", b"control", b"data", b"check", b"welcome", b"refused", b"offer", b"role", b"token", b"capabilities",
    b"protocol_min", b"a-b", b"three-stage", b"software", b"refusal",
];

const ERROR_BYTES: usize = 8192;

#[derive(Arbitrary, Debug)]
struct Said {
    form: Form,
    protocol: (u16, u16),
    software: String,
    capabilities: Vec<u8>,
    job: u8,
    token: [u8; 32],
    connection: u16,
}

#[derive(Arbitrary, Debug)]
enum Form {
    Control,
    Data,
    Check,
    Welcome,
    Refused,
}

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    let said = Said::arbitrary(noise)?;
    let software: String =
        said.software.chars().filter(|char| !char.is_control()).take(30).collect();
    let mut names: Vec<String> =
        said.capabilities.iter().take(40).map(|one| format!("c{one:02x}")).collect();
    names.sort();
    names.dedup();
    let (one, other) = (said.protocol.0.max(1), said.protocol.1.max(1));
    let offer = json!({
        "protocol_min": one.min(other), "protocol_max": one.max(other),
        "software": software, "capabilities": names,
    });
    let token: String = said.token.iter().map(|byte| format!("{byte:02x}")).collect();
    let value = match said.form {
        Form::Control => json!({"offer": offer, "role": {"type": "control"}}),
        Form::Check => json!({"offer": offer, "role": {"type": "check"}, "new": [1]}),
        Form::Data => json!({"offer": offer, "role": {
            "type": "data", "job": format!("job-{}", said.job), "token": token, "connection": said.connection,
        }}),
        Form::Welcome => json!({
            "type": "welcome", "protocol": one, "software": software, "capabilities": names,
        }),
        Form::Refused => json!({"type": "refused", "refusal": {
            "code": "protocol-version", "reason": software, "remedy": "upgrade",
        }}),
    };
    Ok(Made::valid(value.to_string().into_bytes()))
}

fn run(input: &[u8]) -> Outcome {
    let hello = Hello::decode(input);
    let reply = Reply::decode(input);
    match (hello, reply) {
        (Ok(hello), _) => welcome(&hello),
        (Err(_), Ok(reply)) => answered(&reply),
        (Err(hello), Err(reply)) => {
            let _ = of_error(&reply, ERROR_BYTES);
            Outcome::refused(of_error(&hello, ERROR_BYTES))
        }
    }
}

fn welcome(hello: &Hello) -> Outcome {
    check(&hello.offer.software, &hello.offer.capabilities);
    let encoded = hello.encode();
    assert!(encoded.is_ok(), "what was read cannot be written: {encoded:?}");
    assert_eq!(encoded.and_then(|bytes| Hello::decode(&bytes)).as_ref(), Ok(hello));
    if let Role::Data { token, .. } = &hello.role {
        assert!(!format!("{hello:?}").contains(&format!("{:?}", token.0)), "a secret is printed");
    }
    let ours = ours();
    let reply = Reply::to_offer(&ours, &hello.offer);
    assert!(reply.encode().is_ok(), "our reply does not fit");
    let agreed = match &reply {
        Reply::Welcome(welcome) => Agreed::by_welcome(&hello.offer, welcome).is_ok(),
        Reply::Refused { .. } => true,
    };
    assert!(agreed, "our reply is not what was offered");
    let role = match hello.role {
        Role::Control => "control",
        Role::Data { .. } => "data",
        Role::Check => "check",
    };
    let capabilities = scale(hello.offer.capabilities.iter().count() as u64);
    let is_welcome = matches!(reply, Reply::Welcome(_));
    Outcome::accepted(format!("hello {role}, {capabilities} capabilities, welcome {is_welcome}"))
}

fn answered(reply: &Reply) -> Outcome {
    let encoded = reply.encode();
    assert!(encoded.is_ok(), "what was read cannot be written: {encoded:?}");
    assert_eq!(encoded.and_then(|bytes| Reply::decode(&bytes)).as_ref(), Ok(reply));
    match reply {
        Reply::Welcome(welcome) => {
            check(&welcome.software, &welcome.capabilities);
            let agreed = Agreed::by_welcome(&ours(), welcome);
            let said =
                agreed.map_or_else(|error| of_error(&error, ERROR_BYTES), |_| "agreed".into());
            Outcome::accepted(format!("welcome, {said}"))
        }
        Reply::Refused { refusal } => {
            Outcome::accepted(format!("refused, {} bytes", scale(refusal.reason.len() as u64)))
        }
    }
}

fn ours() -> Offer {
    let capabilities = Capabilities::new(&["c01", "three-stage"]);
    Offer::of_this_build("0.1.0", capabilities.unwrap_or_default())
}

fn check(software: &str, capabilities: &Capabilities) {
    assert!(software.len() <= MAX_VERSION_BYTES && !software.contains('\u{1b}'));
    assert!(capabilities.iter().count() <= MAX_CAPABILITIES);
    assert!(
        capabilities.iter().all(|one| (1..=MAX_CAPABILITY_BYTES).contains(&one.as_str().len()))
    );
}
