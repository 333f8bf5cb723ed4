//! One order: the account, the proof for each name, and the certificate.

use std::{sync::Arc, time::Duration};

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, ExternalAccountKey, Identifier,
    NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::{proof::Proofs, question::Questions, store::Store};
use crate::{config::AccountKey, http::fetch::Fetcher};

/// How long the authority may check the proofs, and how long it may sign.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).timeout(Duration::from_secs(120));
/// The authority has forgotten the account (RFC 8555 §6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// The authority that issues certificates.
pub struct Authority {
    directory: Url,
    questions: Questions,
    /// Binds a new account to one that was made elsewhere.
    elsewhere: Option<ExternalAccountKey>,
}

/// A certificate with its chain, and its key, in PEM.
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

/// An account, as it is stored.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    account: AccountCredentials,
}

impl Authority {
    /// # Errors
    /// If the certificates that the system trusts cannot be read.
    pub fn new(directory: Url, elsewhere: Option<&AccountKey>) -> Result<Self, String> {
        let questions = Questions(Arc::new(Fetcher::new(&directory, None)?));
        let elsewhere = elsewhere.map(|account| ExternalAccountKey::new(account.id.clone(), &account.key));
        Ok(Self { directory, questions, elsewhere })
    }

    pub fn directory(&self) -> &Url {
        &self.directory
    }

    /// Orders one certificate for all these names.
    ///
    /// # Errors
    /// The reason, in words.
    pub async fn order(&self, names: &[String], store: &Store, proofs: &Proofs) -> Result<Issued, String> {
        let mut order = self.begin(names, store).await?;
        if let Err(error) = prove(&mut order, proofs).await {
            return Err(refusals(&mut order).await.unwrap_or(error));
        }
        let key = order.finalize().await.map_err(words)?;
        let certificate = order.poll_certificate(&POLL).await.map_err(words)?;
        Ok(Issued { certificate, key })
    }

    async fn begin(&self, names: &[String], store: &Store) -> Result<Order, String> {
        let names: Vec<_> = names.iter().cloned().map(Identifier::Dns).collect();
        let order = NewOrder::new(&names);
        let kept = store.account::<Kept>().await.map_err(|error| error.to_string())?;
        if let Some(kept) = kept.filter(|kept| kept.directory == self.directory.as_str()) {
            let account = Account::builder_with_http(Box::new(self.questions.clone()));
            let account = account.from_credentials(kept.account).await.map_err(words)?;
            match account.new_order(&order).await {
                Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => {}
                begun => return begun.map_err(words),
            }
        }
        self.register(store).await?.new_order(&order).await.map_err(words)
    }

    async fn register(&self, store: &Store) -> Result<Account, String> {
        let new = NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };
        let account = Account::builder_with_http(Box::new(self.questions.clone()));
        let (account, credentials) =
            account.create(&new, self.directory.to_string(), self.elsewhere.as_ref()).await.map_err(words)?;
        let kept = Kept { directory: self.directory.to_string(), account: credentials };
        store.put_account(&kept).await.map_err(|error| format!("--tls-acme-state: {error}"))?;
        Ok(account)
    }
}

/// Proves each name that the authority does not know of this account yet.
async fn prove(order: &mut Order, proofs: &Proofs) -> Result<(), String> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(words)?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = authorization.identifier().to_string();
        let mut challenge = authorization.challenge(ChallengeType::TlsAlpn01).ok_or_else(|| {
            format!("{name}: the authority asks for no proof by TLS-ALPN-01, and no other is given here")
        })?;
        proofs.add(&name, challenge.key_authorization().digest().as_ref())?;
        challenge.set_ready().await.map_err(words)?;
    }
    match order.poll_ready(&POLL).await.map_err(words)? {
        OrderStatus::Ready => Ok(()),
        status => Err(format!("the authority has ended the order: {status:?}")),
    }
}

/// The names that the authority has refused, and why. `None` if it says nothing of a name.
async fn refusals(order: &mut Order) -> Option<String> {
    let mut told = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let state = authorization.refresh().await.ok()?;
        let name = state.identifier().to_string();
        let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        told.extend(errors.map(|problem| format!("{name}: {}", detail(problem))));
    }
    (!told.is_empty()).then(|| told.join("; "))
}

fn words(error: Error) -> String {
    match error {
        Error::Api(problem) => detail(&problem),
        other => other.to_string(),
    }
}

/// The words of the authority, and the code of its error.
fn detail(problem: &Problem) -> String {
    let code = problem.r#type.as_deref().unwrap_or("no code");
    let mut text = format!("{} ({code})", problem.detail.as_deref().unwrap_or("no reason is given"));
    for part in &problem.subproblems {
        text = format!("{text}; {part}");
    }
    text
}
