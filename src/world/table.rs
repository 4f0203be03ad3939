//! One kind of entity in one dense array, found by id.
//!
//! Owns the entities of one kind that this shard owns. Promises: walking over them is walking over memory; the order of
//! ids is kept sorted, so that frames need no sort. Never says anything by the order of the array itself.

use serde::{Deserialize, Serialize};

use crate::wire::ids::EntityId;

/// What can stand in a [`Table`].
pub trait Named {
    /// The entity's id; it never changes.
    fn id(&self) -> EntityId;
}

/// Entities of one kind. Kept as the plain list of its entities.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Vec<T>", bound(deserialize = "T: Named + Deserialize<'de>"))]
pub struct Table<T> {
    items: Vec<T>,
    #[serde(skip)]
    order: Vec<(EntityId, u32)>,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { items: Vec::new(), order: Vec::new() }
    }
}

impl<T: Named> From<Vec<T>> for Table<T> {
    /// Panics when an id comes twice.
    fn from(items: Vec<T>) -> Table<T> {
        let mut table = Table::default();
        items.into_iter().for_each(|item| table.insert(item));
        table
    }
}

impl<T: Named> Table<T> {
    /// Number of entities.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Place of an id in the array.
    pub fn position(&self, id: EntityId) -> Option<usize> {
        let found = self.order.binary_search_by_key(&id, |&(other, _)| other).ok()?;
        Some(self.order[found].1 as usize)
    }

    /// The entity with this id.
    pub fn get_mut(&mut self, id: EntityId) -> Option<&mut T> {
        self.position(id).map(|at| &mut self.items[at])
    }

    /// Adds an entity.
    ///
    /// Panics when the id is already here: an entity has one owner and one place.
    pub fn insert(&mut self, item: T) {
        let id = item.id();
        let at = self.items.len() as u32;
        match self.order.last() {
            Some(&(last, _)) if last >= id => {
                let place = self.order.binary_search_by_key(&id, |&(other, _)| other);
                let place = place.expect_err("an entity is in a table once");
                self.order.insert(place, (id, at));
            }
            _ => self.order.push((id, at)),
        }
        self.items.push(item);
    }

    /// Takes an entity out.
    pub fn remove(&mut self, id: EntityId) -> Option<T> {
        let found = self.order.binary_search_by_key(&id, |&(other, _)| other).ok()?;
        let (_, at) = self.order.remove(found);
        let item = self.items.swap_remove(at as usize);
        if let Some(moved) = self.items.get(at as usize) {
            let moved = self.order.binary_search_by_key(&moved.id(), |&(other, _)| other);
            self.order[moved.expect("every item is in the order")].1 = at;
        }
        Some(item)
    }

    /// All entities, in no order that means anything.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.items.iter()
    }

    /// All entities, to change themselves.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.items.iter_mut()
    }

    /// The entity at a place of the array.
    pub fn at(&self, place: usize) -> &T {
        &self.items[place]
    }

    /// Ids in rising order with their places in the array.
    pub fn order(&self) -> &[(EntityId, u32)] {
        &self.order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{below, random};
    use std::collections::BTreeMap;

    impl Named for (EntityId, u64) {
        fn id(&self) -> EntityId {
            self.0
        }
    }

    #[test]
    fn behaves_as_a_sorted_map() {
        let mut table = Table::default();
        let mut model = BTreeMap::new();
        for n in 0..20_000u64 {
            let id = EntityId(u64::from(below(random(1, EntityId(0), 0, n), 300)));
            match (n % 3, model.contains_key(&id)) {
                (0, _) => assert_eq!(table.remove(id).map(|item: (EntityId, u64)| item.1), model.remove(&id)),
                (_, false) => {
                    table.insert((id, n));
                    model.insert(id, n);
                }
                _ => {
                    table.get_mut(id).expect("in both").1 = n;
                    model.insert(id, n);
                }
            }
        }
        let listed: Vec<_> = table.order().iter().map(|&(id, at)| (id, table.at(at as usize).1)).collect();
        assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
    }
}
