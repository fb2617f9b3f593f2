// PKCS#7 as BouncyCastle and the JDK write it: see README.md.
//
//   java -cp 'lib/*' Record.java DIRECTORY
//
// DIRECTORY has leaf.pem, intermediate.pem, root.pem, intermediate.key (PKCS#8) and intermediate.crl.

import java.io.FileReader;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.X509CRL;
import java.security.cert.X509Certificate;
import java.math.BigInteger;
import java.util.Date;
import java.util.List;
import org.bouncycastle.asn1.DERUTF8String;
import org.bouncycastle.asn1.x509.GeneralName;
import org.bouncycastle.asn1.x509.GeneralNames;
import org.bouncycastle.asn1.x509.RoleSyntax;
import org.bouncycastle.asn1.pkcs.PrivateKeyInfo;
import org.bouncycastle.cert.AttributeCertificateHolder;
import org.bouncycastle.cert.AttributeCertificateIssuer;
import org.bouncycastle.cert.X509AttributeCertificateHolder;
import org.bouncycastle.cert.X509v2AttributeCertificateBuilder;
import org.bouncycastle.cert.jcajce.JcaCertStore;
import org.bouncycastle.cert.jcajce.JcaX509CRLHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateHolder;
import org.bouncycastle.cms.CMSAbsentContent;
import org.bouncycastle.cms.CMSProcessableByteArray;
import org.bouncycastle.cms.CMSSignedData;
import org.bouncycastle.cms.CMSSignedDataGenerator;
import org.bouncycastle.cms.CMSTypedData;
import org.bouncycastle.cms.jcajce.JcaSignerInfoGeneratorBuilder;
import org.bouncycastle.openssl.PEMParser;
import org.bouncycastle.openssl.jcajce.JcaPEMKeyConverter;
import org.bouncycastle.operator.ContentSigner;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.operator.jcajce.JcaDigestCalculatorProviderBuilder;

public class Record {
    static Path directory;

    public static void main(String[] arguments) throws Exception {
        directory = Path.of(arguments[0]);
        X509Certificate leaf = certificate("leaf.pem");
        X509Certificate intermediate = certificate("intermediate.pem");
        X509Certificate root = certificate("root.pem");
        CMSTypedData absent = new CMSAbsentContent();

        // The three encodings that BouncyCastle knows; the first is its default.
        CMSSignedData enrolled = generator(leaf).generate(absent);
        write("bouncycastle-ber.p7", enrolled.getEncoded());
        write("bouncycastle-dl.p7", enrolled.getEncoded("DL"));
        write("bouncycastle-der.p7", enrolled.getEncoded("DER"));
        write("bouncycastle-ber-cacerts.p7", generator(intermediate, root).generate(absent).getEncoded());
        write("bouncycastle-ber-chain.p7", generator(leaf, intermediate, root).generate(absent).getEncoded());

        // Content that is there and empty: an OCTET STRING of indefinite length.
        CMSTypedData empty = new CMSProcessableByteArray(new byte[0]);
        write("bouncycastle-ber-content.p7", generator(leaf).generate(empty, true).getEncoded());

        // A CRL, an attribute certificate, a signer.
        CMSSignedDataGenerator withCrl = generator(leaf);
        withCrl.addCRL(new JcaX509CRLHolder(crl("intermediate.crl")));
        write("bouncycastle-ber-crl.p7", withCrl.generate(absent).getEncoded());
        ContentSigner signer = new JcaContentSignerBuilder("SHA256withECDSA").build(key("intermediate.key"));
        CMSSignedDataGenerator withAttributes = generator(leaf);
        withAttributes.addAttributeCertificate(attributes(leaf, intermediate, signer));
        write("bouncycastle-ber-attribute-certificate.p7", withAttributes.generate(absent).getEncoded());
        CMSSignedDataGenerator signed = generator(leaf, intermediate);
        signed.addSignerInfoGenerator(
            new JcaSignerInfoGeneratorBuilder(new JcaDigestCalculatorProviderBuilder().build())
                .build(signer, intermediate));
        write("bouncycastle-ber-signed.p7", signed.generate(empty, true).getEncoded());

        // Nothing in the bag.
        write("bouncycastle-ber-empty.p7", generator().generate(absent).getEncoded());

        // The JDK's own writer.
        CertificateFactory factory = CertificateFactory.getInstance("X.509");
        write("jdk-certpath.p7", factory.generateCertPath(List.of(leaf, intermediate)).getEncoded("PKCS7"));
    }

    static CMSSignedDataGenerator generator(Certificate... certificates) throws Exception {
        CMSSignedDataGenerator generator = new CMSSignedDataGenerator();
        generator.addCertificates(new JcaCertStore(List.of(certificates)));
        return generator;
    }

    static X509AttributeCertificateHolder attributes(
            X509Certificate holder, X509Certificate issuer, ContentSigner signer) throws Exception {
        X509v2AttributeCertificateBuilder builder = new X509v2AttributeCertificateBuilder(
            new AttributeCertificateHolder(new JcaX509CertificateHolder(holder)),
            new AttributeCertificateIssuer(new JcaX509CertificateHolder(issuer).getSubject()),
            BigInteger.ONE, holder.getNotBefore(), holder.getNotAfter());
        GeneralName role = new GeneralName(GeneralName.uniformResourceIdentifier, "urn:example:role");
        builder.addAttribute(
            new org.bouncycastle.asn1.ASN1ObjectIdentifier("2.5.4.72"), new RoleSyntax(role));
        return builder.build(signer);
    }

    static X509Certificate certificate(String name) throws Exception {
        try (InputStream in = Files.newInputStream(directory.resolve(name))) {
            return (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(in);
        }
    }

    static X509CRL crl(String name) throws Exception {
        try (InputStream in = Files.newInputStream(directory.resolve(name))) {
            return (X509CRL) CertificateFactory.getInstance("X.509").generateCRL(in);
        }
    }

    static PrivateKey key(String name) throws Exception {
        try (PEMParser parser = new PEMParser(new FileReader(directory.resolve(name).toFile()))) {
            return new JcaPEMKeyConverter().getPrivateKey((PrivateKeyInfo) parser.readObject());
        }
    }

    static void write(String name, byte[] bytes) throws Exception {
        Files.write(directory.resolve(name), bytes);
    }
}
