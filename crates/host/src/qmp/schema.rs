//! What this QEMU can do, from its own description of its protocol (`query-qmp-schema`).

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use super::{Qmp, QmpError};

/// The parts of QEMU's schema that questions are asked of. Some hundred kB; drop it when the questions are answered.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    commands: HashMap<String, HashSet<String>>,
    events: HashSet<String>,
    migration_capabilities: HashSet<String>,
    blockdev_drivers: HashSet<String>,
}

impl Schema {
    /// That the command exists.
    #[must_use]
    pub fn has_command(&self, command: &str) -> bool {
        self.commands.contains_key(command)
    }

    /// That the command exists and takes this argument.
    #[must_use]
    pub fn command_takes(&self, command: &str, argument: &str) -> bool {
        self.commands.get(command).is_some_and(|arguments| arguments.contains(argument))
    }

    /// That the event exists.
    #[must_use]
    pub fn has_event(&self, event: &str) -> bool {
        self.events.contains(event)
    }

    /// That there is this migration capability (`switchover-ack`).
    #[must_use]
    pub fn has_migration_capability(&self, capability: &str) -> bool {
        self.migration_capabilities.contains(capability)
    }

    /// That there is this block driver (`null-co`). Distributors leave drivers out, or put them in modules: then the schema has them and
    /// adding a node may still fail.
    #[must_use]
    pub fn has_blockdev_driver(&self, driver: &str) -> bool {
        self.blockdev_drivers.contains(driver)
    }

    fn from_entities(entities: &[Entity]) -> Self {
        let by_name: HashMap<&str, &Entity> =
            entities.iter().map(|entity| (entity.name.as_str(), entity)).collect();
        let members = |type_name: &str| by_name.get(type_name).map(|entity| &*entity.members);
        // A command's argument, the member of that argument, and so on: the enumeration at the end.
        let values = |command: &str, path: &[&str]| {
            let mut entity = *by_name.get(command)?;
            entity = by_name.get(entity.arg_type.as_str())?;
            for step in path {
                let member = entity.members.iter().find(|member| member.name == *step)?;
                let element = member.kind.trim_start_matches('[').trim_end_matches(']');
                entity = by_name.get(element)?;
            }
            let named = entity.members.iter().map(|member| member.name.clone());
            Some(entity.values.iter().cloned().chain(named).collect::<HashSet<_>>())
        };
        let arguments = |entity: &&Entity| {
            let members = members(&entity.arg_type).unwrap_or_default();
            members.iter().map(|member| member.name.clone()).collect()
        };
        let of_kind = |kind: &'static str| entities.iter().filter(move |one| one.meta_type == kind);
        Self {
            commands: of_kind("command")
                .map(|entity| (entity.name.clone(), arguments(&entity)))
                .collect(),
            events: of_kind("event").map(|entity| entity.name.clone()).collect(),
            migration_capabilities: values(
                "migrate-set-capabilities",
                &["capabilities", "capability"],
            )
            .unwrap_or_default(),
            blockdev_drivers: values("blockdev-add", &["driver"]).unwrap_or_default(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Entity {
    name: String,
    meta_type: String,
    arg_type: String,
    members: Vec<Member>,
    values: Vec<String>,
}

/// A member of an object (with a type), of an enumeration (with a name only) or of an alternative (with a type only).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Member {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Qmp {
    /// What this QEMU can do. It is a long reply: ask once per QEMU.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_schema(&self) -> Result<Schema, QmpError> {
        let entities: Vec<Entity> = self.ask("query-qmp-schema", Value::Null).await?;
        Ok(Schema::from_entities(&entities))
    }
}
