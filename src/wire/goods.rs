//! The words of the ledger: what coins and items are called between clients, the world and the keeper.
//!
//! Owns nothing. Promises: every bound of an order is part of its type, so that an order is a plain value of fixed size.
//! What an order may do is decided by the ledger alone (`keeper/ledger.rs`).

use crate::ids::{CellKey, EntityId, ShardId};
use crate::limits::{GOODS_PART_ENTRIES, OFFER_ITEMS_MAX};
use serde::{Deserialize, Serialize};

pub use crate::generated::tables::Refusal;

/// A kind of coin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Currency {
    /// What is traded.
    Coin = 0,
    /// What deeds earn.
    Renown = 1,
}

impl Currency {
    /// All of them, by number.
    pub const ALL: [Currency; 2] = [Currency::Coin, Currency::Renown];

    /// The currency with this number.
    pub fn of(number: u8) -> Option<Currency> {
        Currency::ALL.get(usize::from(number)).copied()
    }

    /// Its place in tables.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// A part of what a character has. Each is an account.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Shelf {
    /// What it carries: traded, dropped and mailed from here.
    Bag = 1,
    /// Items that are set apart, no coins. It has no effect yet: nothing that lies here is worn or counts for anything.
    Equipment = 2,
    /// What it keeps.
    Bank = 3,
    /// What came back or was paid for mail.
    Mailbox = 4,
}

impl Shelf {
    /// All of them, by number.
    pub const ALL: [Shelf; 4] = [Shelf::Bag, Shelf::Equipment, Shelf::Bank, Shelf::Mailbox];

    /// The shelf with this number.
    pub fn of(number: u8) -> Option<Shelf> {
        Shelf::ALL.into_iter().find(|&shelf| shelf as u8 == number)
    }

    /// This shelf of a character.
    pub fn account(self, character: u64) -> Account {
        Account::new(self as u8, character)
    }
}

/// A place for coins and items: a kind (top 8 bits) and an owner below 2^56.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Account(pub u64);

impl Account {
    /// Where coins and items come from. Its balance is what it made, below zero.
    pub const MINT: Account = Account(8 << 56);
    /// Where coins and items end.
    pub const BURN: Account = Account(9 << 56);
    /// What lay on the ground for too long.
    pub const LOST: Account = Account(10 << 56);

    const fn new(kind: u8, owner: u64) -> Account {
        assert!(owner < 1 << 56);
        Account((kind as u64) << 56 | owner)
    }

    /// Goods that wait for somebody, by the number of the mail.
    pub fn escrow(number: u64) -> Account {
        Account::new(5, number)
    }

    /// Goods on the ground, by the number of the thing.
    pub fn ground(number: u64) -> Account {
        Account::new(6, number)
    }

    /// Number of its kind: a [`Shelf`] up to 4, 5 escrow, 6 ground, 8 mint, 9 burn, 10 lost.
    pub fn kind(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Character, mail or thing that it belongs to.
    pub fn owner(self) -> u64 {
        self.0 & ((1 << 56) - 1)
    }

    /// The shelf that it is, if it is one.
    pub fn shelf(self) -> Option<Shelf> {
        Shelf::of(self.kind())
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 11] =
            ["none", "bag", "equipment", "bank", "mailbox", "escrow", "ground", "unknown", "mint", "burn", "lost"];
        let name = NAMES.get(usize::from(self.kind())).copied().unwrap_or("unknown");
        match self.owner() {
            0 => f.write_str(name),
            owner => write!(f, "{name} {owner}"),
        }
    }
}

/// An item as somebody saw it: a later version is not it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct ItemRef {
    /// Which item of the realm, for ever.
    pub uid: u64,
    /// Rises with each move.
    pub version: u32,
}

/// Goods that one side gives: coins and up to [`OFFER_ITEMS_MAX`] items.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Offer {
    /// Coins; below 0 is refused.
    pub coins: i64,
    items: [ItemRef; OFFER_ITEMS_MAX],
    count: u8,
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} coins", self.coins)?;
        self.items().iter().try_for_each(|item| write!(f, " + item {} version {}", item.uid, item.version))
    }
}

impl Offer {
    /// An offer of coins and items; none when there are more than [`OFFER_ITEMS_MAX`].
    pub fn new(coins: i64, items: &[ItemRef]) -> Option<Offer> {
        let mut offer = Offer { coins, count: u8::try_from(items.len()).ok()?, ..Offer::default() };
        offer.items.get_mut(..items.len())?.copy_from_slice(items);
        Some(offer)
    }

    /// The items.
    pub fn items(&self) -> &[ItemRef] {
        &self.items[..usize::from(self.count)]
    }

    /// Nothing at all.
    pub fn is_empty(&self) -> bool {
        self.coins == 0 && self.count == 0
    }
}

/// Names one order, for ever: the ledger does it once and gives the same answer again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct OrderId {
    /// Who orders: a character, a thing on the ground, or a reserved source.
    pub source: EntityId,
    /// Rises with each order of the source.
    pub sequence: u64,
}

/// What is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Dropped {
    /// One item.
    Item(ItemRef),
    /// This many coins.
    Coins(i64),
}

/// What is ordered. The source's own bag is meant where nothing else is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OrderKind {
    /// An item from one shelf to another.
    Move {
        /// Which.
        item: ItemRef,
        /// Where it is.
        from: Shelf,
        /// Where it shall be.
        to: Shelf,
    },
    /// Coins from one shelf to another.
    MoveCoins {
        /// Which.
        currency: Currency,
        /// How many; at least 1.
        amount: i64,
        /// Where they are.
        from: Shelf,
        /// Where they shall be.
        to: Shelf,
    },
    /// Onto the ground.
    Drop {
        /// What.
        what: Dropped,
        /// Where, fine steps, east.
        x: i32,
        /// Likewise, north.
        y: i32,
    },
    /// From the ground; the thing's owner picked this source as the winner.
    PickUp {
        /// Number of the thing.
        thing: u64,
    },
    /// A thing lay for too long: to [`Account::LOST`]. The source is the thing.
    Sweep {
        /// Number of the thing.
        thing: u64,
    },
    /// A trade: both sides confirmed both offers.
    Swap {
        /// The other side's name for it; it gets the same answer.
        partner: OrderId,
        /// From the source to the partner.
        give: Offer,
        /// From the partner to the source.
        take: Offer,
    },
    /// Mail: into escrow until the receiver takes it, returns it, or it expires.
    Send {
        /// Receiver, number of a character.
        to: u64,
        /// What.
        offer: Offer,
        /// Coins that the receiver pays to take it; 0 is a gift.
        price: i64,
    },
    /// The receiver takes a mail and pays its price.
    TakeMail {
        /// Its number.
        mail: u64,
    },
    /// The receiver sends a mail back.
    ReturnMail {
        /// Its number.
        mail: u64,
    },
    /// An item from the bag that is to be no more.
    Destroy {
        /// Which.
        item: ItemRef,
    },
    /// A deed of a character, rewarded once; kept with its row in one batch.
    Deed {
        /// Number below 64.
        deed: u8,
    },
    /// What became of the order with this id?
    Recall,
    /// From the mint into the bag of a character. Reserved sources alone.
    Grant {
        /// Whose bag.
        character: u64,
        /// How many coins.
        coins: u32,
        /// How many items.
        items: u8,
    },
    /// Coins from one bag to another. Reserved sources alone.
    Pay {
        /// Who pays, number of a character.
        from: u64,
        /// Who gets it.
        to: u64,
        /// How many; at least 1.
        amount: i64,
    },
}

/// One order to the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Its name.
    pub id: OrderId,
    /// What.
    pub kind: OrderKind,
}

/// Something that lies on the ground: the world shows it as the entity `EntityId::thing(number)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Thing {
    /// Number of its account.
    pub number: u64,
    /// Kind of the item; 0: coins.
    pub kind: u16,
    /// Where, fine steps, east.
    pub x: i32,
    /// Likewise, north.
    pub y: i32,
    /// Tick in which it is swept.
    pub end_tick: u64,
}

impl Thing {
    /// The cell that it lies in.
    pub fn cell(&self) -> CellKey {
        CellKey::of_fine(self.x, self.y)
    }
}

/// What the world must know of an order that is durable now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settled {
    /// Orders what the keeper says in one tick; rises with each.
    pub number: u64,
    /// Which order.
    pub order: Order,
    /// `None`: it was done.
    #[serde(with = "refusal_number")]
    pub refusal: Refusal,
    /// What lies on the ground now, for a drop that was done.
    pub thing: Option<Thing>,
}

/// An order and the shard that asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Gets the answer.
    pub shard: ShardId,
    /// What.
    pub order: Order,
}

/// An order in words, for people.
impl std::fmt::Display for OrderKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let offer = |offer: Offer| {
            let mut parts: Vec<String> =
                (offer.coins != 0).then(|| format!("{} coins", offer.coins)).into_iter().collect();
            parts.extend(offer.items().iter().map(|item| format!("item {}", item.uid)));
            if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
        };
        match *self {
            OrderKind::Move { item, from, to } => write!(f, "moves item {} from {from:?} to {to:?}", item.uid),
            OrderKind::MoveCoins { currency, amount, from, to } => {
                write!(f, "moves {amount} {currency:?} from {from:?} to {to:?}")
            }
            OrderKind::Drop { what: Dropped::Item(item), .. } => write!(f, "drops item {}", item.uid),
            OrderKind::Drop { what: Dropped::Coins(amount), .. } => write!(f, "drops {amount} coins"),
            OrderKind::PickUp { thing } => write!(f, "picks up thing {thing}"),
            OrderKind::Sweep { thing } => write!(f, "thing {thing} lay for too long"),
            OrderKind::Swap { partner, give, take } => {
                let partner = partner.source.number();
                write!(f, "trades with character {partner}: gives {}, gets {}", offer(give), offer(take))
            }
            OrderKind::Send { to, offer: sent, price } => {
                write!(f, "mails {} to character {to} for {price} coins", offer(sent))
            }
            OrderKind::TakeMail { mail } => write!(f, "takes mail {mail}"),
            OrderKind::ReturnMail { mail } => write!(f, "mail {mail} goes back"),
            OrderKind::Destroy { item } => write!(f, "destroys item {}", item.uid),
            OrderKind::Deed { deed } => write!(f, "is rewarded for deed {deed}"),
            OrderKind::Recall => f.write_str("asks for an answer"),
            OrderKind::Grant { character, coins, items } => {
                write!(f, "character {character} gets {coins} coins and {items} new items")
            }
            OrderKind::Pay { from, to, amount } => {
                write!(f, "{amount} coins go from character {from} to character {to}")
            }
        }
    }
}

/// What a client is told about its goods: all of them, or what changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GoodsNews {
    /// Everything it has; else only what changed.
    pub whole: bool,
    /// Balances.
    pub balances: Vec<(Shelf, Currency, u64)>,
    /// Items with their kinds and where they are; none: no longer its own.
    pub items: Vec<(ItemRef, u16, Option<Shelf>)>,
    /// Mails for it.
    pub mails: Vec<MailNews>,
}

impl GoodsNews {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        !self.whole && self.balances.is_empty() && self.items.is_empty() && self.mails.is_empty()
    }

    /// Adds what changed later: whoever hears the sum knows what whoever hears both knows.
    pub fn absorb(&mut self, later: GoodsNews) {
        if later.whole {
            *self = later;
            return;
        }
        for balance in later.balances {
            replace(&mut self.balances, balance, |(shelf, currency, _)| (*shelf, *currency));
        }
        for item in later.items {
            replace(&mut self.items, item, |(item, ..)| item.uid);
        }
        for mail in later.mails {
            replace(&mut self.mails, mail, |mail| mail.number);
        }
    }

    /// Takes a part of up to [`GOODS_PART_ENTRIES`] items and mails; the parts in their order say the same.
    pub fn take_part(&mut self) -> GoodsNews {
        let items = self.items.len().min(GOODS_PART_ENTRIES);
        let mails = self.mails.len().min(GOODS_PART_ENTRIES - items);
        GoodsNews {
            whole: std::mem::take(&mut self.whole),
            balances: std::mem::take(&mut self.balances),
            items: self.items.drain(..items).collect(),
            mails: self.mails.drain(..mails).collect(),
        }
    }
}

/// Puts an entry in the place of the one with the same key, or at the end.
fn replace<T, K: PartialEq>(entries: &mut Vec<T>, entry: T, key: impl Fn(&T) -> K) {
    match entries.iter_mut().find(|other| key(other) == key(&entry)) {
        Some(other) => *other = entry,
        None => entries.push(entry),
    }
}

/// A mail as its receiver sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MailNews {
    /// Its number.
    pub number: u64,
    /// Sender, number of a character.
    pub from: u64,
    /// Coins to pay.
    pub price: u64,
    /// Coins in it.
    pub coins: u64,
    /// Items in it.
    pub items: u8,
    /// Tick in which it goes back.
    pub end_tick: u64,
    /// It waits no more: taken, returned or expired.
    pub gone: bool,
}

/// Serde of a refusal as its number.
pub mod refusal_number {
    use super::Refusal;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the number.
    pub fn serialize<S: Serializer>(refusal: &Refusal, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(refusal.0)
    }

    /// Reads the number.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Refusal, D::Error> {
        u8::deserialize(deserializer).map(Refusal)
    }
}
