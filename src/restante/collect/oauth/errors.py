"""Explain the errors of OAuth 2 providers, such as Microsoft's AADSTS numbers, to the user."""

from __future__ import annotations

import re

from ...errors import ConsentNeeded, TemporaryFailure


class ProviderUnavailable(TemporaryFailure):
    """The provider did not respond, or reported a temporary error; stored tokens are kept."""


_SIGN_IN_AGAIN = "run: restante account auth NAME"
# https://learn.microsoft.com/en-us/entra/identity-platform/reference-error-codes
_MICROSOFT = {
    "50011": "the redirect address is not registered; add http://localhost to the application",
    "500113": "the application has no redirect address; add http://localhost to it",
    "50034": "the user does not exist in this organisation",
    "50057": "the user's account is disabled",
    "50076": f"a second factor is required now; {_SIGN_IN_AGAIN}",
    "50079": f"the user must set up a second factor; {_SIGN_IN_AGAIN}",
    "50105": "an administrator must assign the user to the application",
    "50126": "wrong user name or password",
    "50173": f"the sign-in has expired, for example after a new password; {_SIGN_IN_AGAIN}",
    "53003": "the organisation's Conditional Access policy forbids this; ask its administrator",
    "65001": f"the user has not approved this application yet; {_SIGN_IN_AGAIN}",
    "65004": f"the user did not approve the request; {_SIGN_IN_AGAIN}",
    "70000": f"the sign-in is no longer valid; {_SIGN_IN_AGAIN}",
    "70008": f"the sign-in has expired; {_SIGN_IN_AGAIN}",
    "70011": "a scope is invalid; check oauth.scopes",
    "70016": "the code has not been entered yet",
    "700016": "the application does not exist in this organisation; check oauth.client_id",
    "700082": f"the sign-in has expired, because it was not used for a long time; {_SIGN_IN_AGAIN}",
    "7000215": "the application's secret is wrong; check oauth.client_secret",
    "7000218": "the application is not public: allow public client flows, or set client_secret",
    "7000222": "the application's secret has expired; create a new one",
    "90002": "unknown organisation; check oauth.tenant",
    "90094": "an administrator of the organisation must approve this application",
}
# RFC 6749 §5.2, RFC 8628 §3.5, and Google's error codes.
_OTHERS = {
    "access_denied": f"the user or the provider refused; {_SIGN_IN_AGAIN}",
    "admin_policy_enforced": "the organisation's administrator forbids this application",
    "deleted_client": "the application was deleted; register another one and set oauth.client_id",
    "expired_token": f"the code was not entered in time; {_SIGN_IN_AGAIN}",
    "invalid_client": "unknown application or wrong secret; check oauth.client_id",
    "invalid_grant": "the sign-in was revoked or has expired (after 7 days for Google's "
    f"applications in testing); {_SIGN_IN_AGAIN}",
    "invalid_scope": "a scope is invalid, or not available for this sign-in method",
    "org_internal": "only members of the organisation may use this application",
    "redirect_uri_mismatch": "the redirect address is unknown; register a desktop application",
    "unauthorized_client": "the application may not use this sign-in method",
    "unsupported_grant_type": "the provider does not support this sign-in method",
}
_TEMPORARY = ("temporarily_unavailable", "server_error", "slow_down", "rate_limit_exceeded")


def explain(error: str, description: str) -> ConsentNeeded | ProviderUnavailable:
    """Return the exception for the provider's ``error`` and ``error_description``."""
    if error in _TEMPORARY:
        return ProviderUnavailable(f"the provider reports {error}; the stored sign-in is kept")
    number = re.search(r"AADSTS(\d{4,8})", description)
    if number is not None:
        meaning = _MICROSOFT.get(number[1]) or _OTHERS.get(error) or "see its documentation"
        return ConsentNeeded(f"AADSTS{number[1]}: {meaning}")
    text = "".join(filter(str.isprintable, f"{error}: {description}" if description else error))
    return ConsentNeeded(_OTHERS.get(error) or f"the provider reports {text[:200]}")
