//! `vos.toml`: which VO a tenant or machine type belongs to, in the site's own words.
//!
//! ```toml
//! [[vo]]
//! name = "atlas"
//! projects = ["512866f9994f4ad8916d8539a7cdeec9", "atlas-prod"]   # ids or names
//! vac_machine_types = ["atlas-mcore"]
//! ```
//!
//! A tenant that no entry names stays unmapped. What the traffic of VMs says of their VO (scitags.org) is compared with that:
//!
//! ```toml
//! [scitags]
//! flow_label = false              # whether IPv6 flow labels are looked at too; fireflies always are
//! [scitags.experiments]           # VO = experiment number; a number that stands here means no other VO
//! belle = 6
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use vestigo_model::{
    Project, Vo, scitags,
    settings::{self, Mistake},
};

/// Why the file is refused.
#[derive(Debug, thiserror::Error)]
pub enum VosError {
    /// Not TOML, an unknown key, or a value that is no VO name.
    #[error("{0}; correct that line")]
    Syntax(Mistake),
    /// Two entries have the same name.
    #[error("VO {0:?} is listed twice; merge its two [[vo]] entries into one")]
    Twice(String),
    /// One tenant is claimed by two VOs.
    #[error("{what} {value:?} is claimed by VO {first:?} and by VO {second:?}; remove it from one of them")]
    Contested {
        /// Project or machine type.
        what: &'static str,
        /// Which one.
        value: String,
        /// The earlier claimant.
        first: String,
        /// The later claimant.
        second: String,
    },
    /// One tenant is listed twice in one VO.
    #[error("{what} {value:?} is listed twice in VO {vo:?}; remove one of them")]
    Repeated {
        /// Project or machine type.
        what: &'static str,
        /// Which one.
        value: String,
        /// Where.
        vo: String,
    },
    /// A listed project or machine type is the empty text, which would match nothing.
    #[error("VO {vo:?} lists an empty {what}; remove it")]
    Empty {
        /// Project or machine type.
        what: &'static str,
        /// Where.
        vo: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    vo: Vec<Entry>,
    #[serde(default)]
    scitags: Tags,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tags {
    flow_label: bool,
    experiments: BTreeMap<Vo, u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Vo,
    #[serde(default)]
    projects: Vec<String>,
    #[serde(default)]
    vac_machine_types: Vec<String>,
}

/// The mapping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VoMap {
    projects: HashMap<String, Vo>,
    machine_types: HashMap<String, Vo>,
    scitags: SciTags,
}

/// Which VOs an experiment number of scitags.org stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SciTags {
    /// Whether IPv6 flow labels are looked at.
    pub flow_label: bool,
    experiments: BTreeMap<u16, BTreeSet<Vo>>,
}

/// Numbers of the registry; 1, `default`, is nobody's. (A flow label has room for 511.)
const REGISTRY: std::ops::RangeInclusive<u16> = 2..=511;

impl Default for SciTags {
    /// The registry's numbers and names.
    fn default() -> Self {
        let named = |number| Some((number, BTreeSet::from([Vo::new(scitags::experiment_name(number)?).ok()?])));
        Self { flow_label: false, experiments: REGISTRY.filter_map(named).collect() }
    }
}

impl SciTags {
    fn new(tags: Tags) -> Self {
        let mut known = Self { flow_label: tags.flow_label, ..Self::default() };
        let own: BTreeSet<u16> = tags.experiments.values().copied().collect();
        known.experiments.retain(|number, _| !own.contains(number));
        for (vo, number) in tags.experiments {
            known.experiments.entry(number).or_default().insert(vo);
        }
        known
    }

    /// The VOs that the number stands for; `None` if it is not in the table.
    #[must_use]
    pub fn vos(&self, experiment: u16) -> Option<&BTreeSet<Vo>> {
        self.experiments.get(&experiment)
    }
}

impl VoMap {
    /// The numbers of scitags.org.
    #[must_use]
    pub const fn scitags(&self) -> &SciTags {
        &self.scitags
    }

    /// Reads the text of a `vos.toml`.
    pub fn parse(text: &str) -> Result<Self, VosError> {
        let file: File = settings::parse(text).map_err(VosError::Syntax)?;
        let mut names = Vec::new();
        let mut map = Self::default();
        for entry in file.vo {
            if names.contains(&entry.name) {
                return Err(VosError::Twice(entry.name.to_string()));
            }
            claim(&mut map.projects, "project", &entry.name, entry.projects)?;
            claim(&mut map.machine_types, "Vac machine type", &entry.name, entry.vac_machine_types)?;
            names.push(entry.name);
        }
        map.scitags = SciTags::new(file.scitags);
        Ok(map)
    }

    /// The VO of a VM. A project's id decides before its name: names can be reused.
    #[must_use]
    pub fn vo_of(&self, project: Option<&Project>, machine_type: Option<&str>) -> Option<Vo> {
        let by_id = project.and_then(|p| self.projects.get(p.id.as_str()));
        let by_name = || self.projects.get(project?.name.as_ref()?.as_str());
        by_id.or_else(by_name).or_else(|| self.machine_types.get(machine_type?)).cloned()
    }
}

fn claim(map: &mut HashMap<String, Vo>, what: &'static str, vo: &Vo, values: Vec<String>) -> Result<(), VosError> {
    for value in values {
        if value.is_empty() {
            return Err(VosError::Empty { what, vo: vo.to_string() });
        }
        match map.get(&value) {
            Some(other) if other == vo => return Err(VosError::Repeated { what, value, vo: vo.to_string() }),
            Some(other) => {
                let (first, second) = (other.to_string(), vo.to_string());
                return Err(VosError::Contested { what, value, first, second });
            }
            None => map.insert(value, vo.clone()),
        };
    }
    Ok(())
}
