//! What a refused order leaves behind: nothing.

use super::*;
use crate::keeper::book::Flow;

const CONTEXT: Context = Context { tick: 50, next_character: 3, deed_is_new: true };

fn character(number: u64, sequence: u64) -> OrderId {
    OrderId { source: EntityId::character(number), sequence }
}

/// Two characters with coins and items, mails between them, things on the ground.
struct Market {
    ledger: Ledger,
    mail: u64,
    thing: u64,
}

impl Market {
    fn new() -> Market {
        let mut market = Market { ledger: Ledger::new(Terms::default()), mail: 0, thing: 0 };
        for number in [1, 2] {
            let id = OrderId { source: EntityId::JOIN, sequence: number };
            market.done(id, OrderKind::Grant { character: number, coins: 100, items: 6 });
        }
        let offer = Offer::new(7, &[market.item(1, 0), market.item(1, 1)]).unwrap();
        market.done(character(1, 1), OrderKind::Send { to: 2, offer, price: 5 });
        market.mail = market.ledger.orders();
        let what = Dropped::Item(market.item(1, 0));
        market.done(character(1, 2), OrderKind::Drop { what, x: 1, y: 2 });
        market.thing = market.ledger.orders();
        market
    }

    fn item(&self, number: u64, nth: usize) -> ItemRef {
        let uid = self.ledger.book.holding(Shelf::Bag.account(number)).unwrap().items[nth];
        ItemRef { uid, version: self.ledger.book.item(uid).unwrap().version }
    }

    fn apply(&mut self, id: OrderId, kind: OrderKind) -> Refusal {
        let mut sources = vec![id.source];
        if let OrderKind::Swap { partner, .. } = kind {
            sources.push(partner.source);
        }
        for source in sources {
            if !self.ledger.answers.holds(source) {
                self.ledger.answers.restore(source, Vec::new());
            }
        }
        self.ledger.apply(Order { id, kind }, CONTEXT).refusal
    }

    fn done(&mut self, id: OrderId, kind: OrderKind) {
        assert_eq!(self.apply(id, kind), Refusal::None, "{kind:?}");
    }

    /// One order of each kind that would be done.
    fn orders(&self) -> Vec<Order> {
        let (bag, bank) = (Shelf::Bag, Shelf::Bank);
        let (item, theirs) = (self.item(1, 0), self.item(2, 0));
        let offer = |coins, items: &[ItemRef]| Offer::new(coins, items).unwrap();
        let (give, take) = (offer(10, &[item, self.item(1, 1)]), offer(20, &[theirs, self.item(2, 1)]));
        let by_one = [
            OrderKind::Move { item, from: bag, to: bank },
            OrderKind::MoveCoins { currency: Currency::Coin, amount: 3, from: bag, to: bank },
            OrderKind::Drop { what: Dropped::Item(item), x: 3, y: 4 },
            OrderKind::Drop { what: Dropped::Coins(9), x: 3, y: 4 },
            OrderKind::PickUp { thing: self.thing },
            OrderKind::Swap { partner: character(2, 1), give, take },
            OrderKind::Send { to: 2, offer: offer(11, &[item]), price: 1 },
            OrderKind::Destroy { item },
        ];
        let mut orders: Vec<Order> = by_one.map(|kind| Order { id: character(1, 9), kind }).into();
        let mut of = |source, kind| orders.push(Order { id: OrderId { source, sequence: 9 }, kind });
        of(EntityId::character(2), OrderKind::TakeMail { mail: self.mail });
        of(EntityId::character(2), OrderKind::ReturnMail { mail: self.mail });
        of(EntityId::thing(self.thing), OrderKind::Sweep { thing: self.thing });
        of(EntityId::deeds(1), OrderKind::Deed { deed: 4 });
        of(EntityId::ADMIN, OrderKind::Grant { character: 1, coins: 5, items: 3 });
        of(EntityId::ADMIN, OrderKind::Pay { from: 1, to: 2, amount: 4 });
        orders
    }
}

/// Everything that is in a book, in an order that means nothing.
fn contents(book: &Book) -> String {
    let mut lines: Vec<String> = book.accounts().map(|(account, holding)| format!("{account} {holding:?}")).collect();
    lines.extend(book.items().map(|(uid, item)| format!("{uid} {item:?}")));
    lines.sort_unstable();
    format!("{:?} {:x} {lines:?} {:?} {:?}", book.totals, book.digest(), book.census(), book.audit(&[]))
}

#[test]
fn a_failure_at_each_leg_of_each_kind_of_order_leaves_the_book_as_it_was() {
    let market = Market::new();
    let before = contents(&market.ledger.book);
    let bad = Leg::Coins { currency: Currency::Coin, amount: 0, from: Account::MINT, to: Account::LOST };
    for order in market.orders() {
        let mut legs = Vec::new();
        let compiled = market.ledger.compile(&order, market.ledger.orders() + 1, CONTEXT, &mut legs);
        assert!(compiled.is_ok() && market.ledger.book.clone().post(&legs).is_ok(), "{order:?}");
        for done in 0..=legs.len() {
            let burns = |leg: &Leg| matches!(leg, Leg::Item { to: Account::BURN, .. });
            if legs[..done].iter().any(burns) {
                assert_eq!(done, legs.len(), "an item is burnt last: {order:?}");
                continue;
            }
            let mut book = market.ledger.book.clone();
            let broken: Vec<Leg> = legs[..done].iter().copied().chain([bad]).collect();
            assert_eq!(book.post(&broken), Err(Refusal::BadAmount));
            assert_eq!(contents(&book), before, "after {done} legs of {order:?}");
        }
    }
}

#[test]
fn an_order_of_a_stopped_flow_is_refused_at_whichever_leg_and_leaves_the_ledger_as_it_was() {
    for flow in [Flow::Coins(Currency::Coin), Flow::Coins(Currency::Renown), Flow::Items] {
        for order in Market::new().orders() {
            let mut market = Market::new();
            let mut legs = Vec::new();
            let number = market.ledger.orders() + 1;
            assert!(market.ledger.compile(&order, number, CONTEXT, &mut legs).is_ok(), "{order:?}");
            let touches = |leg: &Leg| match leg {
                Leg::Coins { currency, .. } => flow == Flow::Coins(*currency),
                Leg::Item { .. } | Leg::Make { .. } => flow == Flow::Items,
            };
            market.ledger.book.frozen.insert(flow);
            let state = |ledger: &Ledger| {
                let mails: Vec<_> = ledger.mails().map(|(number, mail)| (number, *mail)).collect();
                (contents(&ledger.book), mails, ledger.things().copied().collect::<Vec<_>>())
            };
            let before = state(&market.ledger);
            let refusal = market.apply(order.id, order.kind);
            if legs.iter().any(touches) {
                assert_eq!(refusal, Refusal::Frozen, "{flow:?}: {order:?}");
                assert_eq!(state(&market.ledger), before, "{flow:?}: {order:?}");
            } else {
                assert_eq!(refusal, Refusal::None, "{flow:?}: {order:?}");
            }
        }
    }
}
