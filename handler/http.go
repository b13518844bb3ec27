package handler

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/safetext"
)

// HTTP is what tasker.http may do. The zero value of a field other than Allow
// means its default.
type HTTP struct {
	// Allow names the hosts that it may call, and no others: a template must not
	// be able to make a worker call whatever the worker can reach. A host is a
	// name or a name with a port ("api.example.com", "127.0.0.1:8080"); without a
	// port it allows the scheme's own.
	Allow       []string
	Timeout     time.Duration // of one call; default: none but the step's
	MaxResponse int           // bytes of a response that are kept; default 1 MiB
}

// WithDefaults has the default in place of each zero.
func (h HTTP) WithDefaults() HTTP {
	h.MaxResponse = cmp.Or(h.MaxResponse, 1<<20)
	return h
}

// AllowHTTP registers tasker.http, which may call the given hosts.
func (r *Registry) AllowHTTP(hosts ...string) { r.SetHTTP(HTTP{Allow: hosts}) }

// SetHTTP registers tasker.http, or changes what it may do from the next call
// on.
func (r *Registry) SetHTTP(h HTTP) {
	h = h.WithDefaults()
	c := &caller{HTTP: h}
	c.client = &http.Client{Timeout: h.Timeout, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) >= 5 { // more is a circle; no setting, because nobody needs it
			return errors.New("more than 5 redirects")
		}
		return c.allow(req.URL)
	}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.funcs["tasker.http"] = c.call
	r.http = h
}

// HTTP is what tasker.http may do.
func (r *Registry) HTTP() HTTP {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.http
}

type caller struct {
	HTTP
	client *http.Client
}

// request is the handler_config of tasker.http.
type request struct {
	URL     string            `json:"url"`
	Method  string            `json:"method"` // default GET
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"` // default for methods with a body: the task's context and the dependencies' results
}

// response is its result.
type response struct {
	Status int `json:"status"`
	Body   any `json:"body"` // JSON as it is, anything else as a string
}

// passing are the answers of the 4xx that the same call may not get again: too slow, a
// conflict (as with a first call under the same idempotency key that is still under way),
// locked, too early, too many. RFC 9110, 4918, 8470 and 6585.
var passing = []int{http.StatusRequestTimeout, http.StatusConflict, http.StatusLocked, http.StatusTooEarly, http.StatusTooManyRequests}

// call makes the request. 2xx is the result; 5xx, what is passing, and network errors are
// tried again, when the answer asks for it (Retry-After) or with the usual backoff; every
// other answer is final.
func (c *caller) call(ctx context.Context, attempt *tasker.Attempt) (any, error) {
	spec, err := config[request](attempt)
	if err != nil {
		return nil, err
	}
	req, err := c.request(ctx, spec, attempt)
	if err != nil {
		return nil, Permanent("bad_handler_config", fmt.Errorf("handler_config of step %s in %s: %w", attempt.Step, attempt.Template, err))
	}
	if err := c.allow(req.URL); err != nil {
		return nil, Permanent("host_not_allowed", err)
	}
	label := safetext.MaskQuery(req.URL.String())
	res, err := c.client.Do(req)
	if err != nil {
		if notAllowed := (*hostError)(nil); errors.As(err, &notAllowed) {
			return nil, Permanent("host_not_allowed", notAllowed)
		}
		return nil, fmt.Errorf("call %s: %w", label, safetext.CallError(err))
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, int64(c.MaxResponse)+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", label, err)
	}
	if res.StatusCode/100 == 2 {
		return c.result(res.StatusCode, body)
	}
	err = fmt.Errorf("%s %s answered %s", req.Method, label, safetext.Clean(res.Status, 100))
	if said := excerpt(body); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	if res.StatusCode < 500 && !slices.Contains(passing, res.StatusCode) {
		return nil, Permanent("http_"+strconv.Itoa(res.StatusCode), err)
	}
	if header := res.Header.Get("Retry-After"); header != "" {
		return nil, retryAfterHeader(safetext.Clean(header, 100), err)
	}
	return nil, err
}

func (c *caller) request(ctx context.Context, spec request, attempt *tasker.Attempt) (*http.Request, error) {
	method := strings.ToUpper(spec.Method)
	if method == "" {
		method = http.MethodGet
	}
	var body io.Reader
	if method != http.MethodGet && method != http.MethodHead && method != http.MethodDelete {
		doc := spec.Body
		if doc == nil {
			var err error
			doc, err = json.Marshal(map[string]any{"context": attempt.Context, "dependencies": attempt.Dependencies})
			if err != nil {
				return nil, fmt.Errorf("encode the body: %w", err)
			}
		}
		body = bytes.NewReader(doc)
	}
	if spec.URL == "" {
		return nil, errors.New("tasker.http needs a url")
	}
	req, err := http.NewRequestWithContext(ctx, method, spec.URL, body)
	if err != nil {
		if _, unreadable := errors.AsType[*url.Error](err); unreadable {
			err = errors.New("not a URL") // the parser's reason repeats parts of it, which may be secret
		}
		return nil, fmt.Errorf("url %q: %w", safetext.MaskQuery(spec.URL), err)
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return nil, fmt.Errorf("url %q is neither http nor https", safetext.MaskQuery(spec.URL))
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json, */*;q=0.5")
	req.Header.Set("User-Agent", "tasker")
	req.Header.Set("Idempotency-Key", attempt.IdempotencyKey)
	for name, value := range spec.Headers {
		req.Header.Set(name, value)
	}
	return req, nil
}

type hostError struct{ host, known string }

func (e *hostError) Error() string {
	return fmt.Sprintf("tasker.http may not call %s; it may call: %s. Allow it with http.allow in tasker.yaml, or tasker worker --http-allow %s", e.host, e.known, e.host)
}

func (c *caller) allow(u *url.URL) error {
	own := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if slices.Contains(c.Allow, u.Host) || (u.Port() == "" || u.Port() == own) && slices.Contains(c.Allow, u.Hostname()) {
		return nil
	}
	known := "no host"
	if len(c.Allow) > 0 {
		known = strings.Join(c.Allow, ", ")
	}
	return &hostError{u.Host, known}
}

func (c *caller) result(status int, body []byte) (any, error) {
	if len(body) > c.MaxResponse {
		return nil, Permanent(tasker.CodeResultTooLarge, fmt.Errorf("the answer has more than %d bytes, which are kept at most; http.max_response in tasker.yaml changes that", c.MaxResponse))
	}
	if json.Valid(body) {
		return response{status, json.RawMessage(body)}, nil
	}
	if !utf8.Valid(body) {
		return nil, Permanent(tasker.CodeResultNotSerializable, errors.New("the answer is neither JSON nor text in UTF-8"))
	}
	return response{status, string(body)}, nil
}

// excerpt is the start of an answer, for a message.
func excerpt(body []byte) string { return strings.TrimSpace(safetext.Clean(string(body), 201)) }
