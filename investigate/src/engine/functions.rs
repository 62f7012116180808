//! What the views' columns need and SQL lacks.

use std::{net::IpAddr, sync::Arc};

use datafusion::{
    arrow::{
        array::{ArrayRef, AsArray, BooleanArray, StringArray, UInt16Array},
        compute::cast,
        datatypes::{DataType, UInt16Type},
    },
    common::{Result, exec_datafusion_err, plan_datafusion_err, plan_err},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility},
    prelude::SessionContext,
};
use vestigo_ledger::community_id;
use vestigo_model::Digest;

use crate::arguments::network;

pub(super) fn register(context: &SessionContext) {
    for function in [Function::InNet, Function::WhatWasSaid, Function::CommunityId] {
        context.register_udf(udf(function));
    }
}

fn udf(function: Function) -> ScalarUDF {
    let signature = Signature::one_of(vec![TypeSignature::Any(function.takes())], Volatility::Immutable);
    ScalarUDF::new_from_impl(Named { function, signature })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Function {
    /// `in_net(ip, network)`: whether an address lies in a network.
    InNet,
    /// `what_was_said(record)`: a digest of what a payload's record claims, without its end.
    WhatWasSaid,
    /// `community_id(orig_ip, orig_port, resp_ip, resp_port, proto)`: what other tools call the conversation.
    CommunityId,
}

impl Function {
    const fn takes(self) -> usize {
        match self {
            Self::InNet => 2,
            Self::WhatWasSaid => 1,
            Self::CommunityId => 5,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Named {
    function: Function,
    signature: Signature,
}

impl ScalarUDFImpl for Named {
    fn name(&self) -> &str {
        match self.function {
            Function::InNet => "in_net",
            Function::WhatWasSaid => "what_was_said",
            Function::CommunityId => "community_id",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if arguments.len() != self.function.takes() {
            return plan_err!("{} takes {} arguments", self.name(), self.function.takes());
        }
        Ok(match self.function {
            Function::InNet => DataType::Boolean,
            Function::WhatWasSaid | Function::CommunityId => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let column = |number: usize| columns.get(number).ok_or_else(|| exec_datafusion_err!("an argument is missing"));
        let found: ArrayRef = match self.function {
            Function::InNet => Arc::new(nets(&text(column(0)?)?, &text(column(1)?)?)?),
            Function::WhatWasSaid => {
                Arc::new(text(column(0)?)?.iter().map(|record| record.map(said)).collect::<StringArray>())
            }
            Function::CommunityId => Arc::new(community_ids(
                (&text(column(0)?)?, &number(column(1)?)?),
                (&text(column(2)?)?, &number(column(3)?)?),
                &number(column(4)?)?,
            )),
        };
        Ok(ColumnarValue::Array(found))
    }
}

fn text(column: &ArrayRef) -> Result<StringArray> {
    let plain = cast(column, &DataType::Utf8)?;
    plain.as_string_opt::<i32>().cloned().ok_or_else(|| exec_datafusion_err!("text is wanted"))
}

fn number(column: &ArrayRef) -> Result<UInt16Array> {
    let plain = cast(column, &DataType::UInt16)?;
    plain.as_primitive_opt::<UInt16Type>().cloned().ok_or_else(|| exec_datafusion_err!("a number is wanted"))
}

/// One side of conversations: addresses and ports.
type Side<'a> = (&'a StringArray, &'a UInt16Array);

/// NULL where a part is NULL, an address is none, or the two are of different families.
fn community_ids(orig: Side<'_>, resp: Side<'_>, protos: &UInt16Array) -> StringArray {
    let side = |(ip, port): (Option<&str>, Option<u16>)| Some((ip?.parse::<IpAddr>().ok()?, port?));
    let sides = orig.0.iter().zip(orig.1).zip(resp.0.iter().zip(resp.1)).zip(protos);
    let id = |((orig, resp), proto): ((_, _), Option<u16>)| {
        let id = community_id(side(orig)?, side(resp)?, u8::try_from(proto?).ok()?);
        Some(id).filter(|id| !id.is_empty())
    };
    sides.map(id).collect()
}

/// An address that is none lies in no network; a network that is none is an error.
fn nets(ips: &StringArray, networks: &StringArray) -> Result<BooleanArray> {
    let mut last = None;
    let holds = |(ip, text): (Option<&str>, Option<&str>)| {
        let (Some(ip), Some(text)) = (ip, text) else { return Ok(None) };
        let network = match &last {
            Some((known, network)) if known == text => *network,
            _ => {
                let network = network(text).map_err(|why| plan_datafusion_err!("{why}"))?;
                last = Some((text.to_owned(), network));
                network
            }
        };
        Ok(Some(ip.parse::<IpAddr>().is_ok_and(|ip| network.holds(ip))))
    };
    ips.iter().zip(networks.iter()).map(holds).collect()
}

/// The same for two records exactly when host's stamp, guest's stamp and claim are the same.
fn said(record: &str) -> String {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(record) else { return String::new() };
    let fact = value.get("fact").filter(|fact| fact.is_object()).unwrap_or(&value);
    let payload = fact.get("payload").filter(|payload| payload.is_object()).unwrap_or(fact);
    let parts =
        ["received", "claimed", "claim"].map(|name| payload.get(name).map(ToString::to_string).unwrap_or_default());
    Digest::of(parts.join("\n").as_bytes()).to_string()
}
