//! References in operations: found when a saga comes in, replaced by their values when a step goes out.

use unanimity_engine::{Argument, Binding, Bound, Place, Reference, Scalar};
use unanimity_proto::v1::{self, value::Kind};

use crate::error::Refused;

/// The references in an operation, which is the `index`th of its work and stands at `field` of the request.
pub(crate) fn bindings(
    field: &str,
    index: u32,
    operation: &v1::Operation,
) -> Result<Vec<Binding>, Refused> {
    let read = |(argument, text): (Argument, &String)| {
        if argument == Argument::Parameter(String::new()) {
            // The log knows places by their parameter's name, and those without by their position.
            return Err(Refused::invalid(
                format!("{field}.parameters"),
                "a parameter with a reference needs a name",
            ));
        }
        let place = Place {
            operation: index,
            argument,
        };
        let reference = text.parse().map_err(|malformed| {
            Refused::invalid(format!("{field}.{place}"), format!("{text:?}: {malformed}"))
        });
        reference.map(|reference: Reference| Binding { place, reference })
    };
    references(operation).into_iter().map(read).collect()
}

/// Refuses an operation, which stands at `field`, that has a reference.
pub(crate) fn refuse(field: &str, operation: &v1::Operation) -> Result<(), Refused> {
    let Some((argument, _)) = references(operation).into_iter().next() else {
        return Ok(());
    };
    let place = Place {
        operation: 0,
        argument,
    };
    Err(Refused::invalid(
        format!("{field}.{place}"),
        "a reference goes only into a saga's steps",
    ))
}

/// In an order that the same operation always has.
fn references(operation: &v1::Operation) -> Vec<(Argument, &String)> {
    let mut parameters: Vec<_> = operation.parameters.iter().collect();
    parameters.sort_by_key(|(name, _)| *name);
    let parameters = parameters
        .into_iter()
        .map(|(name, value)| (Argument::Parameter(name.clone()), value));
    let arguments = (0..)
        .zip(&operation.arguments)
        .map(|(at, value)| (Argument::Position(at), value));
    let all = parameters.chain(arguments);
    all.filter_map(|(argument, value)| match &value.kind {
        Some(Kind::Reference(text)) => Some((argument, text)),
        _ => None,
    })
    .collect()
}

/// Puts the values where the references stand. One whose place is not there would go out as a reference, which every participant refuses.
pub(super) fn substitute(operations: &mut [v1::Operation], values: Vec<Bound>) {
    for Bound { place, value } in values {
        let operation = operations.get_mut(place.operation as usize);
        let target = operation.and_then(|operation| match &place.argument {
            Argument::Parameter(name) => operation.parameters.get_mut(name),
            Argument::Position(at) => operation.arguments.get_mut(*at as usize),
        });
        if let Some(target) = target {
            target.kind = Some(kind(value));
        }
    }
}

fn kind(value: Scalar) -> Kind {
    match value {
        Scalar::Null => Kind::Null(true),
        Scalar::Boolean(value) => Kind::Boolean(value),
        Scalar::Integer(value) => Kind::Integer(value),
        Scalar::Float(value) => Kind::Float(value),
        Scalar::Text(value) => Kind::Text(value),
    }
}

#[cfg(test)]
mod tests {
    use unanimity_engine::Refusal;

    use super::*;

    fn reference(text: &str) -> v1::Value {
        v1::Value {
            kind: Some(Kind::Reference(text.into())),
        }
    }

    fn text(text: &str) -> v1::Value {
        v1::Value {
            kind: Some(Kind::Text(text.into())),
        }
    }

    fn operation(parameters: &[(&str, v1::Value)], arguments: Vec<v1::Value>) -> v1::Operation {
        v1::Operation {
            statement: None,
            parameters: parameters
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            arguments,
        }
    }

    #[test]
    fn references_are_found_and_text_is_never_taken_for_one() {
        let operation = operation(
            &[("b", reference("order.id")), ("a", text("order.id"))],
            vec![text("x"), reference("transaction.id")],
        );
        let found = bindings("operation", 2, &operation).expect("well formed");
        let shown: Vec<_> = found
            .iter()
            .map(|binding| {
                format!(
                    "{} {} {}",
                    binding.place.operation, binding.place, binding.reference
                )
            })
            .collect();
        assert_eq!(
            shown,
            ["2 parameters.b order.id", "2 arguments[1] transaction.id"]
        );
    }

    #[test]
    fn a_malformed_or_misplaced_reference_is_refused_by_its_field() {
        let field = |refused| match refused {
            Refused::Engine(Refusal::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let one = operation(&[("a", reference("order"))], Vec::new());
        assert_eq!(
            field(bindings("f", 0, &one).expect_err("malformed")),
            "f.parameters.a"
        );
        let nameless = operation(&[("", reference("order.id"))], Vec::new());
        assert_eq!(
            field(bindings("f", 0, &nameless).expect_err("nameless")),
            "f.parameters"
        );
        assert_eq!(
            field(refuse("f", &one).expect_err("misplaced")),
            "f.parameters.a"
        );
        let two = operation(&[], vec![text("x"), reference("order.id")]);
        assert_eq!(
            field(refuse("f", &two).expect_err("misplaced")),
            "f.arguments[1]"
        );
        assert_eq!(refuse("f", &operation(&[("a", text("x"))], vec![])), Ok(()));
    }

    #[test]
    fn values_take_the_places_of_references() {
        let mut operations = [
            operation(&[("a", reference("order.id"))], Vec::new()),
            operation(&[], vec![text("x"), reference("order.ok")]),
        ];
        let bound = |operation, argument, value| Bound {
            place: Place {
                operation,
                argument,
            },
            value,
        };
        let values = vec![
            bound(0, Argument::Parameter("a".into()), Scalar::Integer(7)),
            bound(1, Argument::Position(1), Scalar::Boolean(true)),
            bound(5, Argument::Position(1), Scalar::Null),
        ];
        substitute(&mut operations, values);
        assert_eq!(operations[0].parameters["a"].kind, Some(Kind::Integer(7)));
        assert_eq!(operations[1].arguments[0], text("x"));
        assert_eq!(operations[1].arguments[1].kind, Some(Kind::Boolean(true)));
    }
}
