//! The leases of what is no payload: the VM's system and its pilots. Announced as payloads are, so that a flow of theirs is as
//! certain as a payload's, and one from no lease at all stands out.

use std::collections::BTreeMap;

use tracing::warn;
use vestigo_model::{
    Exit, Holder, IdError, Label, Lease, PayloadClaim, PayloadId, PayloadUid, PilotId, Trust, User, Vo, link::Claim,
};

use super::state::State;
use crate::network::own::{OwnHolder, PRIVILEGED};

/// Announces them. Their run ids come back, for their end.
pub(super) fn announce(state: &State) -> Vec<PayloadUid> {
    let mut runs = Vec::new();
    for (holder, block) in state.networks().own_leases() {
        let uid = PayloadUid(uuid::Uuid::new_v4());
        let mut leases = vec![Lease::Ports(block)];
        let holder = match holder {
            OwnHolder::System => {
                leases.push(Lease::Ports(PRIVILEGED));
                Holder::System
            }
            OwnHolder::Pilot => Holder::Pilot,
        };
        let said = claim(uid, holder, leases)
            .map_err(|e| e.to_string())
            .and_then(|claim| state.link.record(Claim::PayloadStart(claim)).made().map_err(|e| e.to_string()));
        match said {
            Ok(_) => runs.push(uid),
            Err(error) => warn!(holder = holder.as_str(), error, "the VM's own lease cannot be announced"),
        }
    }
    runs
}

/// Ends them, in order.
pub(super) fn withdraw(state: &State, runs: &[PayloadUid]) {
    for uid in runs {
        super::record::end(state, *uid, Exit::Code(0), false);
    }
}

fn claim(uid: PayloadUid, holder: Holder, leases: Vec<Lease>) -> Result<PayloadClaim, IdError> {
    let name = holder.as_str();
    Ok(PayloadClaim {
        uid,
        holder,
        pilot: PilotId::new(name)?,
        payload: PayloadId::new(name)?,
        user: User { issuer: Label::new("the VM itself")?, subject: Label::new(name)? },
        vo: Vo::new("vm")?,
        trust: Trust::AssertedByVo,
        task: None,
        token: None,
        access: None,
        executable: None,
        interpreter: None,
        command: Vec::new(),
        leases,
        isolation: BTreeMap::new(),
        withheld: None,
    })
}
