use sfv::{BareItem, List, ListEntry, Parser};

use super::*;

#[test]
fn members_parse_as_a_list() {
    const MAX: u64 = 999_999_999_999_999;
    let names = ["a", "", " a b ", "\"", "\\", "a\\\"b\\", "50%25", "a,b;c=d"];
    let numbers = [0, 1, 9, 10, 99, 100, 12_345, MAX];
    let members = names.into_iter().zip(numbers).map(|(name, number)| {
        let member = with_parameters(&string(name), [(b'q', number), (b'w', MAX - number)]);
        assert_eq!(member.len(), member.capacity());
        member
    });
    let list = members.collect::<Vec<_>>().join(&b", "[..]);
    let parsed = Parser::new(&list).parse::<List>().expect("a list");
    assert_eq!(parsed.len(), names.len());
    for ((entry, name), number) in parsed.into_iter().zip(names).zip(numbers) {
        let ListEntry::Item(item) = entry else {
            panic!("not an item")
        };
        let BareItem::String(text) = item.bare_item else {
            panic!("not a string")
        };
        assert_eq!(text.as_str(), name);
        let integer = |key: &str| match item.params.get(key) {
            Some(BareItem::Integer(integer)) => i64::from(*integer) as u64,
            _ => panic!("not an integer"),
        };
        assert_eq!((integer("q"), integer("w")), (number, MAX - number));
    }
}

#[test]
fn numbers_have_all_digits() {
    for of in [0, 7, 10, 60, 86_400, u64::MAX] {
        assert_eq!(number(of).to_str().ok(), Some(&*of.to_string()));
    }
}
