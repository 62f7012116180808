//! What the taps' witnesses have learnt, brought into records.

use vestigo_model::{Flow, SciTag, SciTagSource, Tuple};

use super::*;
use crate::capture::Tapped;

impl Service {
    /// Writes the records of VMs whose taps showed new addresses.
    pub(super) async fn write_learnt(&mut self) {
        let changed = self.vms.values_mut().filter_map(|vm| vm.note_learnt().then(|| vm.instance.clone()));
        for instance in changed.collect::<Vec<_>>() {
            self.recorder.submit(Fact::Instance(instance), None, None).await;
        }
    }

    /// What the VM says of the flow's VO. A firefly names the flow itself. A flow label is believed to be a mark only if its number is in
    /// the table and the VM marks its flows so (docs/decisions/0057). With it comes whether it is to be counted: once for a flow, of which a
    /// firefly may speak when its first records are written.
    pub(super) fn scitag(&mut self, flow: &Flow, tapped: &Tapped) -> Option<(SciTag, bool)> {
        let begins = tapped.record.began == flow.first;
        let ends = Tuple {
            src_ip: flow.orig_ip,
            src_port: flow.orig_port,
            dst_ip: flow.resp_ip,
            dst_port: flow.resp_port,
            proto: flow.proto,
        };
        if let Some((tag, news)) = tapped.observed.witness.memory().named(ends, flow.last) {
            return Some((tag, news || begins));
        }
        let tag = flow.notes.scitag.filter(|tag| tag.by == SciTagSource::FlowLabel)?;
        let marking = &mut self.vms.get_mut(&flow.domain)?.marking;
        if begins {
            marking.note(tag.experiment);
        }
        let known = self.options.vos.borrow().scitags().vos(tag.experiment).is_some();
        (known && marking.means(tag.experiment)).then_some((tag, begins))
    }
}
