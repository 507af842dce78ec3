//! Which role each route requires. A route can only be added together with its role, so that none is forgotten.

use std::collections::HashMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, on};

use super::{App, observe};
use crate::config::Role;

/// What a route requires of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// No token at all.
    Nothing,
    /// This role, or a greater one.
    Role(Role),
}

/// May read.
pub(super) const VIEWER: Need = Need::Role(Role::Viewer);
/// May make agents work, and answer their questions.
pub(super) const OPERATOR: Need = Need::Role(Role::Operator);
/// May do everything.
pub(super) const ADMIN: Need = Need::Role(Role::Admin);

/// Whether requests are served when there is no place for ordinary ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Not served then.
    #[default]
    Ordinary,
    /// Served: what supervisors request, and what ends or unblocks a run. Their bodies are small ([`super::memory`]).
    Urgent,
    /// The handler decides by the body: a chat request may send a message, or answer a question.
    ByBody,
}

/// What each method of each route requires, and how urgent it is.
#[derive(Debug, Default, Clone)]
pub(super) struct Needs(HashMap<(&'static str, Method), (Need, Urgency)>);

impl Needs {
    /// What a request requires, given the route that it matches. Any valid token is enough to be told that a route or a method
    /// does not exist.
    pub(super) fn of(&self, method: &Method, route: &str) -> Need {
        self.find(method, route).map_or(VIEWER, |(need, _)| need)
    }

    /// How urgent a request is; none if it matches no route.
    pub(super) fn urgency(&self, request: &Request) -> Option<Urgency> {
        let route = request.extensions().get::<MatchedPath>()?;
        self.find(request.method(), route.as_str()).map(|(_, urgency)| urgency)
    }

    fn find(&self, method: &Method, route: &str) -> Option<(Need, Urgency)> {
        // GET routes also serve HEAD.
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let found = self.0.iter().find(|((path, of), _)| *path == route && of == method);
        found.map(|(_, found)| *found)
    }
}

/// Routes, each with its requirements.
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
        self.needs.0.insert((path, method), (need, Urgency::default()));
        self
    }

    /// Limits the time until their responses begin.
    pub(super) fn within(mut self, limit: Duration) -> Self {
        self.router = self.router.layer(from_fn_with_state(limit, observe::bound));
        self
    }

    /// Sets their urgency.
    pub(super) fn that_are(mut self, urgency: Urgency) -> Self {
        self.needs.0.values_mut().for_each(|(_, held)| *held = urgency);
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
    /// All of them, in the form of `docs/http.md`: method, path and role.
    pub(super) fn told(&self) -> std::collections::BTreeSet<(String, String, String)> {
        let told = self.0.iter().map(|((path, method), (need, _))| {
            let role = match need {
                Need::Nothing => "none",
                Need::Role(role) => role.as_str(),
            };
            (method.to_string(), (*path).to_owned(), role.to_owned())
        });
        told.collect()
    }
}
