//! Records out of keys: equal ones are one, and the order is always the same.

use std::collections::HashMap;
use std::time::SystemTime;

use kiln_content::json;
use kiln_digest::Digest;
use kiln_exporter::{ExportedLayer, Timestamp};

use crate::config::{ChainResult, Config, Input, Layer, LayerResult, Record};

/// The time of results that are not simply the first so many layers of an image.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// Position of a record in its [`Records`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordIndex(usize);

/// An alternative for an input: which part of which record.
pub(crate) type Way = (Option<Digest>, RecordIndex);

/// The records of a cache to be.
#[derive(Debug, Default)]
pub struct Records {
    records: Vec<Entry>,
    roots: HashMap<Digest, RecordIndex>,
    /// From a record, as an input, to those that are made of it.
    users: HashMap<Link, Vec<RecordIndex>>,
}

#[derive(Clone, Debug)]
struct Entry {
    digest: Digest,
    inputs: Vec<Vec<Way>>,
    result: Option<(SystemTime, Vec<ExportedLayer>)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Link {
    from: RecordIndex,
    input: usize,
    selector: Option<Digest>,
    digest: Digest,
}

impl Records {
    /// Makes an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record. One with this digest that shares an alternative of every input is the same, and gets the further
    /// alternatives. Every input has at least one.
    pub fn add(&mut self, digest: Digest, inputs: Vec<Vec<(Option<Digest>, RecordIndex)>>) -> RecordIndex {
        let index = self.find(digest, &inputs).unwrap_or_else(|| {
            let ways = vec![Vec::new(); inputs.len()];
            self.records.push(Entry { digest, inputs: ways, result: None });
            RecordIndex(self.records.len() - 1)
        });
        if inputs.is_empty() {
            self.roots.insert(digest, index);
        }
        for (input, ways) in inputs.into_iter().enumerate() {
            for (selector, from) in ways {
                let users = self.users.entry(Link { from, input, selector, digest }).or_default();
                if !users.contains(&index) {
                    users.push(index);
                }
                let known = self.records.get_mut(index.0).and_then(|entry| entry.inputs.get_mut(input));
                if let Some(known) = known.filter(|known| !known.contains(&(selector, from))) {
                    known.push((selector, from));
                }
            }
        }
        index
    }

    fn find(&self, digest: Digest, inputs: &[Vec<Way>]) -> Option<RecordIndex> {
        if inputs.is_empty() {
            return self.roots.get(&digest).copied();
        }
        let mut common: Option<Vec<RecordIndex>> = None;
        for (input, ways) in inputs.iter().enumerate() {
            let users = |(selector, from): &Way| {
                self.users.get(&Link { from: *from, input, selector: *selector, digest })
            };
            let reached: Vec<RecordIndex> = ways.iter().filter_map(users).flatten().copied().collect();
            common = Some(match common {
                None => reached,
                Some(before) => before.into_iter().filter(|index| reached.contains(index)).collect(),
            });
        }
        let same = |index: &RecordIndex| {
            self.records.get(index.0).is_some_and(|entry| entry.inputs.len() == inputs.len())
        };
        common?.into_iter().filter(same).min()
    }

    /// Attaches a result; the newest one counts.
    pub fn attach(&mut self, index: RecordIndex, created_at: SystemTime, layers: Vec<ExportedLayer>) {
        if let Some(entry) = self.records.get_mut(index.0)
            && entry.result.as_ref().is_none_or(|(known, _)| *known < created_at)
        {
            entry.result = Some((created_at, layers));
        }
    }

    /// Writes them down in the order of the format, with the layers that the config's refer to.
    pub fn into_config(self) -> (Config, Vec<ExportedLayer>) {
        let mut layers = Layers::default();
        let tops: Vec<Option<(SystemTime, usize)>> = self
            .records
            .iter()
            .map(|entry| {
                let (created_at, chain) = entry.result.as_ref()?;
                Some((*created_at, layers.add_chain(chain)?))
            })
            .collect();
        let (config_layers, places, described) = layers.sorted();
        let records = self.in_order(|old, _| {
            let result = tops[old].map(|(created_at, top)| LayerResult {
                layer: signed(places[top]),
                created_at: Timestamp::from(created_at).to_string(),
            });
            (result.into_iter().collect(), Vec::new())
        });
        (Config { layers: config_layers, records }, described)
    }

    /// Writes them down for the config of an image with these layers. Only results that consist of layers of the image
    /// go along; none without any.
    pub fn into_inline(self, image: &[ExportedLayer]) -> Option<Vec<u8>> {
        let same = |own: &ExportedLayer, layer: &ExportedLayer| {
            own.descriptor.digest == layer.descriptor.digest || own.diff_id == layer.diff_id
        };
        let place = |layer: &ExportedLayer| image.iter().position(|own| same(own, layer)).map(signed);
        let records = self.in_order(|_, entry| {
            let Some((created_at, chain)) = &entry.result else { return Default::default() };
            if chain.len() <= image.len() && chain.iter().zip(image).all(|(layer, own)| same(own, layer)) {
                let created_at = Timestamp::from(*created_at).to_string();
                return (vec![LayerResult { layer: signed(chain.len()) - 1, created_at }], Vec::new());
            }
            let layers: Option<Vec<i64>> = chain.iter().map(place).collect();
            let chain = layers.map(|layers| ChainResult { layers, created_at: NO_TIME.to_owned() });
            (Vec::new(), chain.into_iter().collect())
        });
        let any = records.iter().any(|record| !record.layers.is_empty() || !record.chains.is_empty());
        any.then(|| json::compact(&records))
    }

    /// The records in the order of the format, with the results that `results` gives for each.
    fn in_order(
        &self,
        results: impl Fn(usize, &Entry) -> (Vec<LayerResult>, Vec<ChainResult>),
    ) -> Vec<Record> {
        let order = self.order();
        let mut new_places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, old)| new_places[*old] = new);
        let records = order.iter().map(|&old| {
            let entry = &self.records[old];
            let (layers, chains) = results(old, entry);
            let inputs = entry.inputs.iter().map(|ways| {
                let mut ways: Vec<Input> = ways
                    .iter()
                    .map(|(selector, from)| Input {
                        selector: selector.map(|selector| selector.to_string()).unwrap_or_default(),
                        link: signed(new_places[from.0]),
                    })
                    .collect();
                ways.sort_by(|a, b| (a.link, &a.selector).cmp(&(b.link, &b.selector)));
                ways
            });
            Record { layers, chains, digest: entry.digest, inputs: inputs.collect() }
        });
        records.collect()
    }

    /// Positions in the order of the format: by digest, then by what they are made of.
    fn order(&self) -> Vec<usize> {
        let key = |index: &usize| {
            let entry = &self.records[*index];
            let inputs: Vec<_> = entry
                .inputs
                .iter()
                .map(|ways| {
                    let mut ways: Vec<_> = ways
                        .iter()
                        .map(|(selector, from)| {
                            let selector = selector.map(|selector| selector.to_string()).unwrap_or_default();
                            (selector, self.records[from.0].digest.to_string())
                        })
                        .collect();
                    ways.sort();
                    (ways.len(), ways)
                })
                .collect();
            (entry.digest.to_string(), inputs.len(), inputs)
        };
        let mut order: Vec<usize> = (0..self.records.len()).collect();
        order.sort_by_cached_key(key);
        order
    }
}

fn signed(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

/// The layers of all results, each once for what it stands on.
#[derive(Default)]
struct Layers {
    layers: Vec<(ExportedLayer, Option<usize>)>,
    known: HashMap<(Digest, Option<usize>), usize>,
}

impl Layers {
    /// Adds a result's layers; returns the place of the top one.
    fn add_chain(&mut self, chain: &[ExportedLayer]) -> Option<usize> {
        let mut below = None;
        for layer in chain {
            let place = *self.known.entry((layer.descriptor.digest, below)).or_insert_with(|| {
                self.layers.push((layer.clone(), below));
                self.layers.len() - 1
            });
            below = Some(place);
        }
        below
    }

    /// Sorts them by blob, then by what they stand on; returns where each went, and the layers in the new order.
    fn sorted(self) -> (Vec<Layer>, Vec<usize>, Vec<ExportedLayer>) {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by_cached_key(|old| {
            let (layer, below) = &self.layers[*old];
            (layer.descriptor.digest.to_string(), below.map_or(-1, signed))
        });
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, old)| places[*old] = new);
        let config = order.iter().map(|&old| {
            let (layer, below) = &self.layers[old];
            Layer { blob: layer.descriptor.digest, parent: below.map_or(-1, |below| signed(places[below])) }
        });
        let config = config.collect();
        let described = order.iter().map(|&old| self.layers[old].0.clone()).collect();
        (config, places, described)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_content::Descriptor;

    use super::*;

    fn layer(name: &str) -> ExportedLayer {
        ExportedLayer {
            descriptor: Descriptor::of("application/vnd.oci.image.layer.v1.tar", name.as_bytes()),
            diff_id: Digest::of(name),
            source: String::new(),
            description: String::new(),
            created_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn records_with_a_common_way_in_are_one() {
        let mut records = Records::new();
        let [a, b, content] = ["a", "b", "content"].map(|name| records.add(Digest::of(name), Vec::new()));
        assert_eq!(records.add(Digest::of("a"), Vec::new()), a);
        let one = records.add(Digest::of("op"), vec![vec![(None, a), (None, content)]]);
        let two = records.add(Digest::of("op"), vec![vec![(None, b), (None, content)]]);
        assert_eq!(one, two);
        assert_eq!(records.add(Digest::of("op"), vec![vec![(None, b)]]), one);
        let selected = records.add(Digest::of("op"), vec![vec![(Some(Digest::of("x")), b)]]);
        assert_ne!(selected, one);
        let both = records.add(Digest::of("op"), vec![vec![(None, a)], vec![(None, b)]]);
        assert_ne!(both, one);
    }

    #[test]
    fn the_newest_result_counts_and_shared_layers_are_listed_once() {
        let mut records = Records::new();
        let root = records.add(Digest::of("root"), Vec::new());
        let one = records.add(Digest::of("one"), vec![vec![(None, root)]]);
        let two = records.add(Digest::of("two"), vec![vec![(None, one)]]);
        records.attach(one, at(2), vec![layer("base"), layer("1")]);
        records.attach(one, at(1), vec![layer("old")]);
        records.attach(two, at(3), vec![layer("base"), layer("1"), layer("2"), layer("1")]);
        let (config, layers) = records.into_config();
        assert_eq!(layers.len(), 4, "one of them twice, on another one");
        assert_eq!(config.layers.iter().filter(|layer| layer.parent == -1).count(), 1);
        let chain = |digest: &str| {
            let record = config.records.iter().find(|record| record.digest == Digest::of(digest)).unwrap();
            config.chain(record.layers[0].layer)
        };
        assert_eq!(chain("one"), ["base", "1"].map(Digest::of));
        assert_eq!(chain("two"), ["base", "1", "2", "1"].map(Digest::of));
        assert_eq!(Config::parse(&config.to_bytes()).unwrap(), config);
    }

    #[test]
    fn an_image_carries_the_results_that_it_has_the_layers_of() {
        let mut records = Records::new();
        let root = records.add(Digest::of("root"), Vec::new());
        let one = records.add(Digest::of("one"), vec![vec![(None, root)]]);
        let two = records.add(Digest::of("two"), vec![vec![(None, one)]]);
        let picked = records.add(Digest::of("picked"), vec![vec![(None, two)]]);
        let other = records.add(Digest::of("other"), vec![vec![(None, root)]]);
        records.attach(one, at(1), vec![layer("base"), layer("1")]);
        records.attach(two, at(2), vec![layer("base"), layer("1"), layer("2")]);
        records.attach(picked, at(3), vec![layer("base"), layer("2")]);
        records.attach(other, at(4), vec![layer("base"), layer("elsewhere")]);
        let mut converted = layer("compressed anew");
        converted.diff_id = Digest::of("2");
        let bytes = records.into_inline(&[layer("base"), layer("1"), converted]).unwrap();
        let records: Vec<Record> = serde_json::from_slice(&bytes).unwrap();
        let results = |name: &str| {
            let record = records.iter().find(|record| record.digest == Digest::of(name)).unwrap();
            serde_json::to_string(&(&record.layers, &record.chains)).unwrap()
        };
        assert_eq!(results("one"), r#"[[{"layer":1,"createdAt":"1970-01-01T00:00:01Z"}],[]]"#);
        assert_eq!(results("two"), r#"[[{"layer":2,"createdAt":"1970-01-01T00:00:02Z"}],[]]"#);
        assert_eq!(results("picked"), r#"[[],[{"layers":[0,2],"createdAt":"0001-01-01T00:00:00Z"}]]"#);
        assert_eq!((results("other"), results("root")), ("[[],[]]".to_owned(), "[[],[]]".to_owned()));
    }

    #[test]
    fn an_image_without_any_of_the_results_carries_nothing() {
        let mut records = Records::new();
        let root = records.add(Digest::of("root"), Vec::new());
        let one = records.add(Digest::of("one"), vec![vec![(None, root)]]);
        records.attach(one, at(1), vec![layer("1")]);
        assert_eq!(records.into_inline(&[layer("2")]), None);
    }

    #[test]
    fn the_order_does_not_depend_on_how_records_came() {
        let build = |names: [&str; 3]| {
            let mut records = Records::new();
            let roots: Vec<_> = names.iter().map(|name| records.add(Digest::of(name), Vec::new())).collect();
            let ways = roots.iter().map(|root| (None, *root)).collect();
            let op = records.add(Digest::of("op"), vec![ways]);
            records.attach(op, at(1), vec![layer("x")]);
            records.into_config().0.to_bytes()
        };
        assert_eq!(build(["a", "b", "c"]), build(["c", "a", "b"]));
    }
}
