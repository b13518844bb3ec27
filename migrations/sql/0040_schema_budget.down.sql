DROP FUNCTION tasker.schema_problem_within(jsonb, jsonb, jsonb, text, int, int);
DROP FUNCTION tasker.schema_refusal(int, text);

CREATE OR REPLACE FUNCTION tasker.schema_problem(schema jsonb, value jsonb, path text DEFAULT '$') RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF schema IS NULL THEN
        RETURN NULL;
    END IF;
    -- Nearly all values fit, and paths are only for messages: the first look
    -- does without them. #> '{}' is the value itself, read from where large
    -- values are kept: once, not at each look at a part of it.
    value := coalesce(value, 'null') #> '{}';
    schema := schema #> '{}';
    IF tasker.schema_problem_within(schema, schema, value, '', 0) IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN tasker.schema_problem_within(schema, schema, value, path, 0);
END $$;

CREATE FUNCTION tasker.schema_problem_within(root jsonb, rule jsonb, given jsonb, path text, depth int) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    kind      text := jsonb_typeof(given);
    problem   text;
    part      record;
    part_rule jsonb;
    name      text;
    n         numeric;
    words     text;
    matched   int;
BEGIN
    IF jsonb_typeof(rule) = 'boolean' THEN
        RETURN CASE WHEN rule = 'false' THEN path || ' is not allowed' END;
    END IF;
    IF depth >= 100 THEN
        RETURN path || ' is nested more than 100 levels deep';
    END IF;

    -- Of any kind.
    IF rule ? 'type' THEN
        IF kind = 'number' THEN
            n := (given #>> '{}')::numeric;
        END IF;
        IF NOT (rule -> 'type' ? kind OR kind = 'number' AND rule -> 'type' ? 'integer' AND n = trunc(n)) THEN
            SELECT string_agg(tasker.schema_word(t #>> '{}'), ' or ' ORDER BY i) INTO words
            FROM jsonb_array_elements(CASE jsonb_typeof(rule -> 'type') WHEN 'array' THEN rule -> 'type' ELSE jsonb_build_array(rule -> 'type') END)
                WITH ORDINALITY AS types(t, i);
            RETURN format('%s must be %s, not %s', path, words, tasker.schema_shown(given));
        END IF;
    END IF;
    IF rule ? 'enum' AND NOT EXISTS (SELECT FROM jsonb_array_elements(rule -> 'enum') AS e(allowed) WHERE e.allowed = given) THEN
        SELECT string_agg(tasker.schema_shown(e.allowed), ', ' ORDER BY i) INTO words
        FROM jsonb_array_elements(rule -> 'enum') WITH ORDINALITY AS e(allowed, i) WHERE i <= 20;
        RETURN format('%s must be one of %s%s, not %s', path, words,
            CASE WHEN jsonb_array_length(rule -> 'enum') > 20 THEN format(' and %s more', jsonb_array_length(rule -> 'enum') - 20) END,
            tasker.schema_shown(given));
    END IF;
    IF rule ? 'const' AND given <> rule -> 'const' THEN
        RETURN format('%s must be %s, not %s', path, tasker.schema_shown(rule -> 'const'), tasker.schema_shown(given));
    END IF;

    CASE kind
    WHEN 'number' THEN
        IF rule ?| '{minimum,maximum,exclusiveMinimum,exclusiveMaximum,multipleOf}' THEN
            n := (given #>> '{}')::numeric;
            IF n < (rule ->> 'minimum')::numeric THEN
                RETURN format('%s must be at least %s, not %s', path, rule ->> 'minimum', tasker.schema_shown(given));
            ELSIF n > (rule ->> 'maximum')::numeric THEN
                RETURN format('%s must be at most %s, not %s', path, rule ->> 'maximum', tasker.schema_shown(given));
            ELSIF n <= (rule ->> 'exclusiveMinimum')::numeric THEN
                RETURN format('%s must be more than %s, not %s', path, rule ->> 'exclusiveMinimum', tasker.schema_shown(given));
            ELSIF n >= (rule ->> 'exclusiveMaximum')::numeric THEN
                RETURN format('%s must be less than %s, not %s', path, rule ->> 'exclusiveMaximum', tasker.schema_shown(given));
            ELSIF n % (rule ->> 'multipleOf')::numeric <> 0 THEN
                RETURN format('%s must be a multiple of %s, not %s', path, rule ->> 'multipleOf', tasker.schema_shown(given));
            END IF;
        END IF;
    WHEN 'string' THEN
        IF rule ?| '{minLength,maxLength}' THEN
            n := char_length(given #>> '{}');
            IF n < (rule ->> 'minLength')::numeric THEN
                RETURN format('%s must have at least %s characters, not %s', path, rule ->> 'minLength', n);
            ELSIF n > (rule ->> 'maxLength')::numeric THEN
                RETURN format('%s must have at most %s characters, not %s', path, rule ->> 'maxLength', n);
            END IF;
        END IF;
        IF (given #>> '{}') !~ (rule ->> 'pattern') THEN
            RETURN format('%s must match the pattern %s, and %s does not', path, rule ->> 'pattern', tasker.schema_shown(given));
        END IF;
    WHEN 'array' THEN
        IF rule ?| '{minItems,maxItems}' THEN
            n := jsonb_array_length(given);
            IF n < (rule ->> 'minItems')::numeric THEN
                RETURN format('%s must have at least %s items, not %s', path, rule ->> 'minItems', n);
            ELSIF n > (rule ->> 'maxItems')::numeric THEN
                RETURN format('%s must have at most %s items, not %s', path, rule ->> 'maxItems', n);
            END IF;
        END IF;
        IF rule -> 'uniqueItems' = 'true' THEN
            SELECT i.item, min(i.at) - 1 AS first, max(i.at) - 1 AS again INTO part
            FROM jsonb_array_elements(given) WITH ORDINALITY AS i(item, at)
            GROUP BY i.item HAVING count(*) > 1 ORDER BY min(i.at) LIMIT 1;
            IF FOUND THEN
                RETURN format('%s must not hold an item twice: [%s] and [%s] are %s', path, part.first, part.again, tasker.schema_shown(part.item));
            END IF;
        END IF;
        IF rule ? 'items' THEN
            FOR at IN 0 .. jsonb_array_length(given) - 1 LOOP
                problem := tasker.schema_problem_within(root, rule -> 'items', given -> at,
                    CASE path WHEN '' THEN '' ELSE path || '[' || at || ']' END, depth + 1);
                IF problem IS NOT NULL THEN
                    RETURN problem;
                END IF;
            END LOOP;
        END IF;
    WHEN 'object' THEN
        IF rule ? 'required' THEN
            SELECT r.name INTO words FROM jsonb_array_elements_text(rule -> 'required') WITH ORDINALITY AS r(name, at)
            WHERE NOT given ? r.name ORDER BY r.at LIMIT 1;
            IF FOUND THEN
                RETURN tasker.schema_path(path, words) || ' is missing';
            END IF;
        END IF;
        IF rule ?| '{minProperties,maxProperties}' THEN
            SELECT count(*) INTO n FROM jsonb_object_keys(given);
            IF n < (rule ->> 'minProperties')::numeric THEN
                RETURN format('%s must have at least %s keys, not %s', path, rule ->> 'minProperties', n);
            ELSIF n > (rule ->> 'maxProperties')::numeric THEN
                RETURN format('%s must have at most %s keys, not %s', path, rule ->> 'maxProperties', n);
            END IF;
        END IF;
        IF rule ? 'properties' THEN
            FOR name, part_rule IN SELECT p.key, p.value FROM jsonb_each(rule -> 'properties') p LOOP
                CONTINUE WHEN NOT given ? name;
                problem := tasker.schema_problem_within(root, part_rule, given -> name,
                    CASE path WHEN '' THEN '' ELSE tasker.schema_path(path, name) END, depth + 1);
                IF problem IS NOT NULL THEN
                    RETURN problem;
                END IF;
            END LOOP;
        END IF;
        IF rule ? 'patternProperties' THEN
            FOR part IN SELECT g.key, p.value AS rule, g.value AS given
                FROM jsonb_each(given) g JOIN jsonb_each(rule -> 'patternProperties') p ON g.key ~ p.key ORDER BY g.key COLLATE "C", p.key COLLATE "C"
            LOOP
                problem := tasker.schema_problem_within(root, part.rule, part.given,
                    CASE path WHEN '' THEN '' ELSE tasker.schema_path(path, part.key) END, depth + 1);
                IF problem IS NOT NULL THEN
                    RETURN problem;
                END IF;
            END LOOP;
        END IF;
        IF rule ? 'additionalProperties' AND rule -> 'additionalProperties' <> 'true' THEN
            FOR part IN SELECT g.key, g.value AS given FROM jsonb_each(given) g
                WHERE NOT coalesce(rule -> 'properties' ? g.key, false)
                  AND NOT EXISTS (SELECT FROM jsonb_object_keys(coalesce(rule -> 'patternProperties', '{}')) AS p(pattern) WHERE g.key ~ p.pattern)
                ORDER BY g.key COLLATE "C"
            LOOP
                IF rule -> 'additionalProperties' = 'false' THEN
                    SELECT string_agg(k.key, ', ' ORDER BY k.key COLLATE "C") INTO words
                    FROM (SELECT key FROM jsonb_object_keys(coalesce(rule -> 'properties', '{}')) AS p(key) ORDER BY key COLLATE "C" LIMIT 50) k;
                    RETURN tasker.schema_path(path, part.key) || ' is not allowed' || coalesce('; there may be: ' || words, '');
                END IF;
                problem := tasker.schema_problem_within(root, rule -> 'additionalProperties', part.given,
                    CASE path WHEN '' THEN '' ELSE tasker.schema_path(path, part.key) END, depth + 1);
                IF problem IS NOT NULL THEN
                    RETURN problem;
                END IF;
            END LOOP;
        END IF;
    ELSE
        NULL; -- true, false and null have no keywords of their own
    END CASE;

    -- Other schemas for the same value.
    IF NOT rule ?| '{$ref,allOf,anyOf,oneOf,not}' THEN
        RETURN NULL;
    END IF;
    IF rule ? '$ref' THEN
        IF rule ->> '$ref' = '#' THEN
            problem := tasker.schema_problem_within(root, root, given, path, depth + 1);
        ELSE
            problem := tasker.schema_problem_within(root, root #> string_to_array(substr(rule ->> '$ref', 3), '/'), given, path, depth + 1);
        END IF;
        IF problem IS NOT NULL THEN
            RETURN problem;
        END IF;
    END IF;
    IF rule ? 'allOf' THEN
        FOR part IN SELECT a.rule FROM jsonb_array_elements(rule -> 'allOf') AS a(rule) LOOP
            problem := tasker.schema_problem_within(root, part.rule, given, path, depth + 1);
            IF problem IS NOT NULL THEN
                RETURN problem;
            END IF;
        END LOOP;
    END IF;
    IF rule ? 'anyOf' THEN
        words := NULL;
        FOR part IN SELECT a.rule FROM jsonb_array_elements(rule -> 'anyOf') AS a(rule) LOOP
            problem := tasker.schema_problem_within(root, part.rule, given, path, depth + 1);
            EXIT WHEN problem IS NULL;
            words := concat_ws('; or: ', words, problem);
        END LOOP;
        IF problem IS NOT NULL THEN
            RETURN format('%s fits none of the %s schemas of anyOf: %s', path, jsonb_array_length(rule -> 'anyOf'), left(words, 500));
        END IF;
    END IF;
    IF rule ? 'oneOf' THEN
        matched := 0;
        words := NULL;
        FOR part IN SELECT a.rule FROM jsonb_array_elements(rule -> 'oneOf') AS a(rule) LOOP
            problem := tasker.schema_problem_within(root, part.rule, given, path, depth + 1);
            IF problem IS NULL THEN
                matched := matched + 1;
            ELSE
                words := concat_ws('; or: ', words, problem);
            END IF;
        END LOOP;
        IF matched = 0 THEN
            RETURN format('%s fits none of the %s schemas of oneOf: %s', path, jsonb_array_length(rule -> 'oneOf'), left(words, 500));
        ELSIF matched > 1 THEN
            RETURN format('%s fits %s of the %s schemas of oneOf, and may fit one', path, matched, jsonb_array_length(rule -> 'oneOf'));
        END IF;
    END IF;
    IF rule ? 'not' AND tasker.schema_problem_within(root, rule -> 'not', given, path, depth + 1) IS NULL THEN
        RETURN format('%s must not fit the schema %s', path, left((rule -> 'not')::text, 200));
    END IF;
    RETURN NULL;
END $$;
