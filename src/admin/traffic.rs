//! `GET /v1/traffic`: what the proxy of this node has counted, service by service and endpoint by endpoint.

use axum::Json;
use axum::extract::State;
use model::Timestamp;

use super::Shared;
use crate::traffic::{self, Traffic};

pub(super) async fn traffic(State(context): Shared) -> Json<Traffic> {
    let proxy = context.rooms().proxy.clone();
    let nothing = || Traffic {
        at: Timestamp::now(),
        ..Traffic::default()
    };
    Json(proxy.map_or_else(nothing, |proxy| traffic::of(&proxy)))
}
