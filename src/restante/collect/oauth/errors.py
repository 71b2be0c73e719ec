"""Explain a provider's errors and what to do: Microsoft's AADSTS numbers, Google's words."""

from __future__ import annotations

import re

from ...errors import ConsentNeeded, TemporaryFailure


class ProviderUnavailable(TemporaryFailure):
    """The provider did not respond, or reported a temporary error; stored tokens are kept."""


_AGAIN = "next: restante account auth NAME"
# https://learn.microsoft.com/en-us/entra/identity-platform/reference-error-codes
_MICROSOFT = {
    "50011": "the redirect address is not registered; add http://localhost to the application",
    "500113": "the application has no redirect address; add http://localhost to it",
    "50034": "there is no such user in this organisation",
    "50057": "the user's account is disabled",
    "50076": f"a second factor is wanted now; {_AGAIN}",
    "50079": f"the user must set up a second factor; {_AGAIN}",
    "50105": "the user is not assigned to the application; an administrator must do that",
    "50126": "user or password is wrong",
    "50173": f"the consent has ended, as after a new password; {_AGAIN}",
    "53003": "a rule of the organisation (Conditional Access) forbids it; ask its administrator",
    "65001": f"the user has not consented to this application yet; {_AGAIN}",
    "65004": f"the user did not agree; {_AGAIN}",
    "70000": f"the consent is not valid any more; {_AGAIN}",
    "70008": f"the consent has run out; {_AGAIN}",
    "70011": "a scope is wrong; look at oauth.scopes",
    "70016": "the code has not been entered yet",
    "700016": "there is no such application in this organisation; look at oauth.client_id",
    "700082": f"the consent has run out, because it was not used for long; {_AGAIN}",
    "7000215": "the secret of the application is wrong; look at oauth.client_secret",
    "7000218": "the application is not public: allow public client flows, or give client_secret",
    "7000222": "the secret of the application has run out; make a new one",
    "90002": "there is no such organisation; look at oauth.tenant",
    "90094": "an administrator of the organisation must agree to this application",
}
# RFC 6749 §5.2, RFC 8628 §3.5, and errors of Google.
_OTHERS = {
    "access_denied": f"the user or the provider did not agree; {_AGAIN}",
    "admin_policy_enforced": "the organisation's administrator forbids this application",
    "deleted_client": "the application was deleted; make another and set oauth.client_id",
    "expired_token": f"the code was not entered in time; {_AGAIN}",
    "invalid_client": "the application is unknown or its secret wrong; look at oauth.client_id",
    "invalid_grant": "the consent was taken back or has run out (Google's applications in testing "
    f"lose it after 7 days); {_AGAIN}",
    "invalid_scope": "a scope is wrong, or this way to log in does not offer it",
    "org_internal": "only members of the organisation may use this application",
    "redirect_uri_mismatch": "the redirect address is not registered; the application must be one "
    "for the desktop",
    "unauthorized_client": "the application may not use this way to log in",
    "unsupported_grant_type": "the provider does not know this way to log in",
}
_LATER = ("temporarily_unavailable", "server_error", "slow_down", "rate_limit_exceeded")


def explain(error: str, description: str) -> ConsentNeeded | ProviderUnavailable:
    """Return the exception for the provider's ``error`` and ``error_description``."""
    if error in _LATER:
        return ProviderUnavailable(f"the provider says {error}; nothing is lost")
    number = re.search(r"AADSTS(\d{4,8})", description)
    if number is not None:
        meaning = _MICROSOFT.get(number[1]) or _OTHERS.get(error) or "see its documentation"
        return ConsentNeeded(f"AADSTS{number[1]}: {meaning}")
    said = "".join(filter(str.isprintable, f"{error}: {description}" if description else error))
    return ConsentNeeded(_OTHERS.get(error) or f"the provider says {said[:200]}")
