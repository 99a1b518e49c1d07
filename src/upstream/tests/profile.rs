use super::Upstream;
use crate::quota::Quota;

#[test]
fn fields_belong_to_scopes_by_position_or_name() {
    let quota = Quota::per_second(1.0);
    let scopes = [
        quota.scope("tenant"),
        quota.scope("rpm"),
        quota.scope("tpm"),
    ];
    let by_position = Upstream::openai();
    assert_eq!(by_position.scopes(&scopes), [0, 1]);
    assert_eq!(by_position.scope_of("tokens", &scopes[..1]), None);
    let by_name = Upstream::openai()
        .field("requests", "rpm")
        .field("tokens", "tpm");
    assert_eq!(by_name.scopes(&scopes), [1, 2]);
    assert_eq!(by_name.scope_of("tokens", &scopes[..2]), None);
}
