//! The document that lists a cache's records and layers.

use kiln_content::json;
use kiln_digest::Digest;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};

/// What a cache consists of. Field order is that of the document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Blobs, each with the one below it.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub(crate) layers: Vec<Layer>,
    /// Keys and their results.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub(crate) records: Vec<Record>,
}

/// A blob on top of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) blob: Digest,
    /// Position of the one below, -1 for none. Left out when 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) parent: i64,
}

/// A key, by what it is made of, and its results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub(crate) layers: Vec<LayerResult>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub(crate) chains: Vec<ChainResult>,
    /// sha256 of op digest and output.
    pub(crate) digest: Digest,
    /// Per input, its alternatives.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub(crate) inputs: Vec<Vec<Input>>,
}

/// A result that ends with a layer and has all below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerResult {
    pub(crate) layer: i64,
    #[serde(rename = "createdAt", default)]
    pub(crate) created_at: String,
}

/// A result with layers of its own choice, bottom first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChainResult {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) layers: Vec<i64>,
    #[serde(rename = "createdAt", default)]
    pub(crate) created_at: String,
}

/// An alternative for an input: another record, and which part of it matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Input {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) selector: String,
    #[serde(default)]
    pub(crate) link: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Config {
    /// Reads a config from outside and checks that it fits together: positions are good, and nothing goes in circles.
    ///
    /// # Errors
    /// [`Error::Document`], [`Error::Records`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::Document { what: "cache config", reason: error.to_string() })?;
        config.check()?;
        Ok(config)
    }

    /// Reads the records in the config of an image with these layers, bottom first, each on the one before.
    ///
    /// # Errors
    /// [`Error::Document`], [`Error::Records`].
    pub(crate) fn parse_inline(records: &[u8], layers: &[Digest]) -> Result<Self> {
        let records: Option<Vec<Record>> = serde_json::from_slice(records)
            .map_err(|error| Error::Document { what: "inline cache", reason: error.to_string() })?;
        let layer = |(blob, parent): (&Digest, i64)| Layer { blob: *blob, parent };
        let layers = layers.iter().zip(-1..).map(layer).collect();
        let config = Self { layers, records: records.unwrap_or_default() };
        config.check()?;
        Ok(config)
    }

    /// Takes up another one's layers and records. Both fit together before and after.
    pub(crate) fn append(&mut self, mut other: Self) {
        let position = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let (layers, records) = (position(self.layers.len()), position(self.records.len()));
        for layer in other.layers.iter_mut().filter(|layer| layer.parent >= 0) {
            layer.parent += layers;
        }
        for record in &mut other.records {
            record.layers.iter_mut().for_each(|result| result.layer += layers);
            record.chains.iter_mut().flat_map(|chain| &mut chain.layers).for_each(|layer| *layer += layers);
            record.inputs.iter_mut().flatten().for_each(|input| input.link += records);
        }
        self.layers.append(&mut other.layers);
        self.records.append(&mut other.records);
    }

    fn check(&self) -> Result<()> {
        self.check_layers()?;
        self.check_records()
    }

    /// Writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        json::compact(self)
    }

    /// Whether there is nothing in it to use.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The blobs of a result that ends with this layer, bottom first.
    pub(crate) fn chain(&self, top: i64) -> Vec<Digest> {
        let mut blobs = Vec::new();
        let mut next = self.layer(top);
        // Circles were refused when it was read.
        while let Some(layer) = next
            && blobs.len() < self.layers.len()
        {
            blobs.push(layer.blob);
            next = self.layer(layer.parent);
        }
        blobs.reverse();
        blobs
    }

    pub(crate) fn layer(&self, index: i64) -> Option<&Layer> {
        self.layers.get(usize::try_from(index).ok()?)
    }

    fn check_layers(&self) -> Result<()> {
        let bad = |index: i64| Error::Records(format!("invalid layer index {index}"));
        let parents = self.layers.iter().map(|layer| match layer.parent {
            -1 => Ok(Vec::new()),
            parent => match usize::try_from(parent).ok().filter(|parent| *parent < self.layers.len()) {
                Some(parent) => Ok(vec![parent]),
                None => Err(bad(parent)),
            },
        });
        let parents: Vec<_> = parents.collect::<Result<_>>()?;
        if goes_in_circles(&parents) {
            return Err(Error::Records("invalid looping layer".to_owned()));
        }
        let results = self.records.iter().flat_map(|record| {
            let chains = record.chains.iter().flat_map(|chain| chain.layers.iter());
            record.layers.iter().map(|result| &result.layer).chain(chains)
        });
        match results.copied().find(|index| self.layer(*index).is_none()) {
            Some(index) => Err(bad(index)),
            None => Ok(()),
        }
    }

    fn check_records(&self) -> Result<()> {
        let mut below = Vec::with_capacity(self.records.len());
        for (index, record) in self.records.iter().enumerate() {
            let mut links = Vec::new();
            for input in &record.inputs {
                if input.is_empty() {
                    return Err(Error::Records(format!("invalid empty input for record {index}")));
                }
                for way in input {
                    let link = usize::try_from(way.link).ok().filter(|link| *link < self.records.len());
                    let link =
                        link.ok_or_else(|| Error::Records(format!("invalid record ID: {}", way.link)))?;
                    links.push(link);
                }
            }
            below.push(links);
        }
        if goes_in_circles(&below) {
            return Err(Error::Records("invalid looping record".to_owned()));
        }
        Ok(())
    }
}

/// Whether anything leads back to itself. All positions are good.
fn goes_in_circles(below: &[Vec<usize>]) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        Open,
        Done,
    }
    let mut seen = vec![Seen::Not; below.len()];
    for start in 0..below.len() {
        let mut todo = vec![(start, false)];
        while let Some((at, leaving)) = todo.pop() {
            let Some(state) = seen.get_mut(at) else { continue };
            match *state {
                _ if leaving => *state = Seen::Done,
                Seen::Done => {}
                Seen::Open => return true,
                Seen::Not => {
                    *state = Seen::Open;
                    todo.push((at, true));
                    todo.extend(below.get(at).into_iter().flatten().map(|next| (*next, false)));
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, want: &str) {
        let json = json.replace("'", "\"").replace("$A", &Digest::of("a").to_string());
        let got = match Config::parse(json.as_bytes()) {
            Ok(config) => {
                let again = String::from_utf8(config.to_bytes()).unwrap();
                assert_eq!(again, json, "written as it was read");
                format!("{} layers, {} records", config.layers.len(), config.records.len())
            }
            Err(error) => error.to_string(),
        };
        assert!(got.starts_with(want), "{got}");
    }

    #[test]
    fn good_configs_are_read_and_written() {
        check("{}", "0 layers, 0 records");
        check(
            "{'layers':[{'blob':'$A','parent':-1},{'blob':'$A'}],'records':[{'layers':[{'layer':1,'createdAt':'x'}],\
             'digest':'$A'},{'digest':'$A','inputs':[[{'selector':'$A','link':0},{'link':0}]]}]}",
            "2 layers, 2 records",
        );
    }

    #[test]
    fn hostile_configs_are_refused() {
        for (json, want) in [
            ("[", "invalid cache config: "),
            ("{'layers':[{'blob':'x'}]}", "invalid cache config: "),
            ("{'layers':[{'blob':'$A'}]}", "invalid looping layer"),
            ("{'layers':[{'blob':'$A','parent':1},{'blob':'$A'}]}", "invalid looping layer"),
            ("{'layers':[{'blob':'$A','parent':5}]}", "invalid layer index 5"),
            ("{'layers':[{'blob':'$A','parent':-2}]}", "invalid layer index -2"),
            ("{'records':[{'layers':[{'layer':0}],'digest':'$A'}]}", "invalid layer index 0"),
            ("{'records':[{'chains':[{'layers':[-1]}],'digest':'$A'}]}", "invalid layer index -1"),
            ("{'records':[{'digest':'$A','inputs':[[]]}]}", "invalid empty input for record 0"),
            ("{'records':[{'digest':'$A','inputs':[null]}]}", "invalid cache config: "),
            ("{'records':[{'digest':'$A','inputs':[[{'link':1}]]}]}", "invalid record ID: 1"),
            ("{'records':[{'digest':'$A','inputs':[[{'link':-1}]]}]}", "invalid record ID: -1"),
            ("{'records':[{'digest':'$A','inputs':[[{'link':0}]]}]}", "invalid looping record"),
            (
                "{'records':[{'digest':'$A','inputs':[[{'link':1}]]},{'digest':'$A','inputs':[[{'link':0}]]}]}",
                "invalid looping record",
            ),
        ] {
            check(json, want);
        }
    }

    #[test]
    fn deep_chains_are_no_recursion() {
        let digest = Digest::of("a");
        let record = |index: usize| match index {
            0 => format!("{{\"digest\":\"{digest}\"}}"),
            _ => format!("{{\"digest\":\"{digest}\",\"inputs\":[[{{\"link\":{}}}]]}}", index - 1),
        };
        let records: Vec<_> = (0..50_000).map(record).collect();
        let json = format!("{{\"records\":[{}]}}", records.join(","));
        assert_eq!(Config::parse(json.as_bytes()).unwrap().records.len(), 50_000);
    }
}
