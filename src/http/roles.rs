//! Which role each route needs. A route is added together with its role and in no other way, so that none has been forgotten.

use std::collections::HashMap;
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodFilter, on};

use super::{App, observe, places};
use crate::config::Role;

/// What a caller must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Anything: no token is asked for.
    Nothing,
    /// This, or more.
    Role(Role),
}

/// May read.
pub(super) const VIEWER: Need = Need::Role(Role::Viewer);
/// May make agents work, and answer them.
pub(super) const OPERATOR: Need = Need::Role(Role::Operator);
/// May do everything.
pub(super) const ADMIN: Need = Need::Role(Role::Admin);

/// What each method of each route needs.
#[derive(Debug, Default, Clone)]
pub(super) struct Needs(HashMap<(&'static str, Method), Need>);

impl Needs {
    /// What a request needs, given the route that it matches. Whatever is no route, or another method of one, is told to
    /// every caller that shows a token.
    pub(super) fn of(&self, method: &Method, route: &'_ str) -> Need {
        // GET routes answer HEAD.
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let found = self.0.iter().find(|((path, of), _)| *path == route && of == method);
        found.map_or(VIEWER, |(_, need)| *need)
    }
}

/// Routes, each with what it needs.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<App>,
    needs: Needs,
}

impl Routes {
    pub(super) fn get<H: Handler<T, App>, T: 'static>(self, path: &'static str, need: Need, handler: H) -> Self {
        self.add(MethodFilter::GET, Method::GET, path, need, handler)
    }

    pub(super) fn post<H: Handler<T, App>, T: 'static>(self, path: &'static str, need: Need, handler: H) -> Self {
        self.add(MethodFilter::POST, Method::POST, path, need, handler)
    }

    pub(super) fn put<H: Handler<T, App>, T: 'static>(self, path: &'static str, need: Need, handler: H) -> Self {
        self.add(MethodFilter::PUT, Method::PUT, path, need, handler)
    }

    pub(super) fn patch<H: Handler<T, App>, T: 'static>(self, path: &'static str, need: Need, handler: H) -> Self {
        self.add(MethodFilter::PATCH, Method::PATCH, path, need, handler)
    }

    pub(super) fn delete<H: Handler<T, App>, T: 'static>(self, path: &'static str, need: Need, handler: H) -> Self {
        self.add(MethodFilter::DELETE, Method::DELETE, path, need, handler)
    }

    fn add<H: Handler<T, App>, T: 'static>(
        mut self,
        filter: MethodFilter,
        method: Method,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.router = self.router.route(path, on(filter, handler));
        self.needs.0.insert((path, method), need);
        self
    }

    /// Their answers begin within this time.
    pub(super) fn within(mut self, limit: Duration) -> Self {
        self.router = self.router.layer(from_fn_with_state(limit, observe::bound));
        self
    }

    /// They are refused when there is no place for them.
    pub(super) fn unless_crowded(mut self) -> Self {
        self.router = self.router.layer(from_fn(places::admit));
        self
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.needs.0.extend(other.needs.0);
        self
    }

    pub(super) fn into_parts(self) -> (Router<App>, Needs) {
        (self.router, self.needs)
    }
}

#[cfg(test)]
impl Needs {
    /// All of them, as `docs/http.md` tells them: method, path and role.
    pub(super) fn told(&self) -> std::collections::BTreeSet<(String, String, String)> {
        let told = self.0.iter().map(|((path, method), need)| {
            let role = match need {
                Need::Nothing => "none",
                Need::Role(role) => role.as_str(),
            };
            (method.to_string(), (*path).to_owned(), role.to_owned())
        });
        told.collect()
    }
}
