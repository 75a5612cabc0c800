//! Tables and lists of which a build has tens of thousands.

use foldhash::fast::RandomState;

/// Most keys are checksums, which a keyed hash of a few instructions spreads as well as a slow one.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// See [`HashMap`].
pub(crate) type HashSet<K> = std::collections::HashSet<K, RandomState>;

/// Adds to a list that rarely has more than one entry: a vector's own first growth is by four.
pub(crate) fn push_tight<T>(list: &mut Vec<T>, entry: T) {
    if list.capacity() == 0 {
        list.reserve_exact(1);
    }
    list.push(entry);
}
