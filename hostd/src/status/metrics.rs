//! The document as OpenMetrics text. Pure.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use vestigo_model::Vo;

use super::{ShareStatus, Status, TapStatus, VmStatus};

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Family {
    help: &'static str,
    gauge: bool,
    samples: Vec<(Labels, f64)>,
}

/// Every sample of a metric stands together, whichever VM it is of.
#[derive(Debug, Default)]
struct Families(BTreeMap<String, Family>);

/// The text.
///
/// # Errors
/// None in practice: a string takes what is written to it.
pub fn open_metrics(status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families::of(status)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Families {
    fn of(status: &Status) -> Self {
        let mut all = Self::default();
        let none = Labels::new;
        all.gauge("start_time_seconds", "When hostd began, in seconds since 1970", none(), seconds(status));
        all.gauge("vms", "VMs that run", none(), status.vms.len() as f64);
        for (of, bytes) in &status.memory {
            all.gauge("memory_bytes", "Bytes in memory", vec![("of", of.clone())], *bytes as f64);
        }
        for (queue, waiting) in &status.waiting {
            all.gauge(
                "queue_entries",
                "Entries that wait between two parts",
                vec![("queue", queue.clone())],
                *waiting as f64,
            );
        }
        for (stage, counters) in &status.stages {
            for (name, number) in counters {
                all.counter(
                    &format!("{stage}_{name}"),
                    "A stage's own counter (docs/formats/status.md)",
                    none(),
                    *number,
                );
            }
        }
        for vo in &status.vos {
            let label = vo_name(vo.vo.as_ref());
            vo.attribution.iter().for_each(|share| all.share(&label, share));
        }
        status.vms.iter().for_each(|vm| all.vm(vm));
        all
    }

    fn share(&mut self, vo: &str, share: &ShareStatus) {
        let labels: Labels =
            vec![("vo", vo.to_owned()), ("quality", share.quality.to_string()), ("reason", share.reason.clone())];
        self.counter("flow_records", "Flow records, by how they were attributed", labels.clone(), share.records);
        self.counter("flow_packets", "Packets in flow records, both ways", labels.clone(), share.packets);
        self.counter("flow_bytes", "IP bytes in flow records, both ways", labels, share.bytes);
    }

    fn vm(&mut self, vm: &VmStatus) {
        let labels: Labels =
            vec![("domain", vm.domain.to_string()), ("vm", vm.name.to_string()), ("vo", vo_name(vm.vo.as_ref()))];
        for state in ["absent", "silent", "present"] {
            let labels = with(&labels, "state", state);
            let is = if vm.agent == state { 1.0 } else { 0.0 };
            self.gauge("vm_agent", "State of the VM's agent: 1 for the one that holds", labels, is);
        }
        self.gauge("vm_payloads", "Payloads that run in the VM", labels.clone(), vm.payloads as f64);
        for (name, number) in &vm.counters {
            self.counter(&format!("vm_{name}"), "A VM's own counter (docs/formats/status.md)", labels.clone(), *number);
        }
        let mut by_quality: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for share in &vm.attribution {
            let sum = by_quality.entry(share.quality.as_str()).or_default();
            *sum = (sum.0 + share.records, sum.1 + share.bytes);
        }
        for (quality, (records, bytes)) in by_quality {
            let labels = with(&labels, "quality", quality);
            self.counter(
                "vm_flow_records",
                "Flow records of the VM, by how they were attributed",
                labels.clone(),
                records,
            );
            self.counter("vm_flow_bytes", "IP bytes in flow records of the VM, both ways", labels, bytes);
        }
        vm.taps.iter().for_each(|tap| self.tap(&labels, tap));
    }

    fn tap(&mut self, vm: &Labels, tap: &TapStatus) {
        let labels = with(vm, "tap", tap.name.as_str());
        let seen = if tap.unseen.is_none() { 1.0 } else { 0.0 };
        self.gauge("tap_captured", "Whether the tap's frames are seen", labels.clone(), seen);
        self.gauge("tap_flows", "Flows held for the tap", labels.clone(), tap.flows as f64);
        for (name, number) in &tap.counters {
            self.counter(
                &format!("tap_{name}"),
                "A tap's own counter (docs/formats/status.md)",
                labels.clone(),
                *number,
            );
        }
        for (reason, number) in &tap.undecodable {
            let labels = with(&labels, "reason", reason);
            self.counter("tap_undecodable", "Frames that are no IP packet, by reason", labels, *number);
        }
    }

    fn counter(&mut self, name: &str, help: &'static str, labels: Labels, number: u64) {
        self.sample(name, help, false, labels, number as f64);
    }

    fn gauge(&mut self, name: &str, help: &'static str, labels: Labels, number: f64) {
        self.sample(name, help, true, labels, number);
    }

    fn sample(&mut self, name: &str, help: &'static str, gauge: bool, labels: Labels, number: f64) {
        let family = || Family { help, gauge, samples: Vec::new() };
        self.0.entry(format!("vestigo_{name}")).or_insert_with(family).samples.push((labels, number));
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (name, family) in &self.0 {
            let kind = if family.gauge { MetricType::Gauge } else { MetricType::Counter };
            let mut metric = encoder.encode_descriptor(name, family.help, None, kind)?;
            for (labels, number) in &family.samples {
                let sample = metric.encode_family(labels)?;
                if family.gauge {
                    ConstGauge::new(*number).encode(sample)?;
                } else {
                    ConstCounter::new(*number).encode(sample)?;
                }
            }
        }
        Ok(())
    }
}

fn with(labels: &Labels, name: &'static str, value: &str) -> Labels {
    let mut labels = labels.clone();
    labels.push((name, value.to_owned()));
    labels
}

fn vo_name(vo: Option<&Vo>) -> String {
    vo.map_or_else(|| "unmapped".to_owned(), ToString::to_string)
}

fn seconds(status: &Status) -> f64 {
    status.since.as_nanos() as f64 / 1e9
}
